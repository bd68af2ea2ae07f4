//! Panics within a run are findings: their message is kept, not printed.

use std::{
    cell::{Cell, RefCell},
    panic::{self, AssertUnwindSafe},
    sync::Once,
};

thread_local! {
    static CATCHES: Cell<bool> = const { Cell::new(false) };
    static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs; the message of a panic, if there is one.
pub(crate) fn catch<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if CATCHES.get() {
                MESSAGE.with(|message| *message.borrow_mut() = info.to_string());
            } else {
                before(info);
            }
        }));
    });
    CATCHES.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(run));
    CATCHES.set(false);
    result.map_err(|_| MESSAGE.with(RefCell::take))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_message() {
        assert_eq!(catch(|| 7), Ok(7));
        let message = catch(|| panic!("it broke")).unwrap_err();
        assert!(message.contains("it broke"), "{message}");
    }
}
