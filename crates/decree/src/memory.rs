//! Memory that was freed and is kept for what comes next.

use std::ffi::c_long;

use libmimalloc_sys::{mi_option_get, mi_option_set, mi_option_t};

/// How long freed memory stays with the process, in milliseconds. What waits for the store is freed
/// tens of megabytes at a time, every few seconds under load; memory that the system took back
/// meanwhile costs a page fault and a cleared page each time that it is touched anew, which was a
/// quarter of a node's processor time when shards moved under load.
const KEPT_MILLIS: c_long = 30_000;
/// What mimalloc would do by itself.
const USUAL_MILLIS: c_long = 1_000;
/// mimalloc's `purge_delay`, for which its bindings have no name.
const PURGE_DELAY: mi_option_t = 15;

/// To be called first of all, while there is one thread. `MIMALLOC_PURGE_DELAY` in the environment
/// has precedence.
#[allow(unsafe_code)]
pub(crate) fn keep_freed() {
    // SAFETY: these functions read and write a table of options, and ask for nothing but that no
    // other thread does so meanwhile. An option of another number would not have this value.
    unsafe {
        if mi_option_get(PURGE_DELAY) == USUAL_MILLIS {
            mi_option_set(PURGE_DELAY, KEPT_MILLIS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(unsafe_code)]
    fn freed_memory_is_kept_for_as_long_as_it_should() {
        // SAFETY: reading an option; no test writes another.
        let now = || unsafe { mi_option_get(PURGE_DELAY) };
        assert_eq!(now(), USUAL_MILLIS, "is the option of this number still the one it was?");
        keep_freed();
        assert_eq!(now(), KEPT_MILLIS);
    }
}
