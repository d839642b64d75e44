//! Work that clients do not wait for gives way to work that they do.

/// How much less of a processor a background thread is worth than the turn, in steps of `nice`.
const NICE: i32 = 10;

/// Has the scheduler prefer all other threads of the node to the calling one. On a machine with a
/// core to spare nothing changes; on a full one the requests of clients go first.
pub(crate) fn give_way() {
    // On Linux this concerns the thread alone. Where it is refused, work is only less even.
    let _ = rustix::process::nice(NICE);
}
