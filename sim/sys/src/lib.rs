//! What the simulator needs beneath Rust: ring's randomness from the run's seed, and an end without
//! a word when nobody reads its output any more.
//!
//! madsim replaces the C library's `getrandom`, but ring (through getrandom 0.2) asks the kernel by
//! `syscall(SYS_getrandom, …)`. A program that links this crate has its own `syscall`, which leads
//! such a call to madsim's `getrandom` and every other one to the C library.

#![cfg(madsim)]

use std::{
    mem::transmute,
    ptr::null_mut,
    sync::atomic::{AtomicPtr, Ordering},
};

use libc::{c_long, c_uint, c_void, size_t};

/// The C library's `syscall`, which takes as many arguments as the call has.
type Syscall = unsafe extern "C" fn(c_long, ...) -> c_long;

/// Stands in for the C library's `syscall`.
///
/// # Safety
/// As the system call itself demands it. On Linux a variadic caller passes its arguments where this
/// function expects them; those that it did not pass are read and handed on unused.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: size_t,
    b: size_t,
    c: size_t,
    d: size_t,
    e: size_t,
    f: size_t,
) -> c_long {
    if number == libc::SYS_getrandom {
        // SAFETY: the same arguments, as the caller vouches for them.
        return unsafe { libc::getrandom(a as *mut c_void, b, c as c_uint) } as c_long;
    }
    // SAFETY: the same call, as the caller vouches for it.
    unsafe { real()(number, a, b, c, d, e, f) }
}

/// Found at the first call. No lock: std's locks wait by `syscall` themselves.
fn real() -> Syscall {
    static REAL: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
    let mut found = REAL.load(Ordering::Relaxed);
    if found.is_null() {
        // SAFETY: the name ends in NUL.
        found = unsafe { libc::dlsym(libc::RTLD_NEXT, c"syscall".as_ptr()) };
        if found.is_null() {
            std::process::abort();
        }
        REAL.store(found, Ordering::Relaxed);
    }
    // SAFETY: what the C library names `syscall` is of this type.
    unsafe { transmute::<*mut c_void, Syscall>(found) }
}

/// From now on a write to a pipe that nobody reads ends the process, as it does other filters; Rust
/// would panic. The shell sees status 141.
pub fn end_on_closed_pipe() {
    // SAFETY: no handler of ours is replaced, and none runs afterwards.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_calls_reach_the_kernel() {
        // SAFETY: takes no argument, touches no memory.
        let pid = unsafe { syscall(libc::SYS_getpid, 0, 0, 0, 0, 0, 0) };
        assert_eq!(pid, c_long::from(std::process::id()));
    }
}
