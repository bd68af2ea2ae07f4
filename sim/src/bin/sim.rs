//! `cargo sim run|check|replay|planted`.

/// A run allocates all the time, on a thread of its own.
#[cfg(madsim)]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(madsim)]
fn main() -> std::process::ExitCode {
    highwater_sim::cli::main()
}

#[cfg(not(madsim))]
fn main() -> std::process::ExitCode {
    eprintln!("the simulator needs `--cfg madsim`: run it as `cargo sim`");
    std::process::ExitCode::from(2)
}
