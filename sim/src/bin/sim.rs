//! `cargo sim run|check|replay|planted`.

#[cfg(madsim)]
fn main() -> std::process::ExitCode {
    highwater_sim::cli::main()
}

#[cfg(not(madsim))]
fn main() -> std::process::ExitCode {
    eprintln!("the simulator needs `--cfg madsim`: run it as `cargo sim`");
    std::process::ExitCode::from(2)
}
