//! What is put to inputs. A target takes any bytes; it panics where something is not as it must be.

mod codec;
pub(crate) mod disk;
pub(crate) mod engine;
mod grpc;
mod kv;
mod master;
pub(crate) mod node;
pub(crate) mod open;
pub(crate) mod paxos;
pub(crate) mod store;
mod transport;

use crate::heap;
use crate::mutate::Layout;

/// Something that reads bytes.
#[derive(Debug)]
pub struct Target {
    /// Its name, and that of its folder of the corpus.
    pub name: &'static str,
    /// How inputs are made up.
    pub layout: Layout,
    /// Reads an input.
    pub run: fn(&[u8]),
    /// Bytes of memory that it may take whatever the input.
    pub memory: usize,
    /// And for each byte of the input.
    pub memory_per_byte: usize,
    /// How many changed inputs the test command tries.
    pub rounds: u64,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    transport::TARGET,
    codec::FRAME,
    codec::MESSAGE,
    codec::RECORD,
    paxos::TARGET,
    kv::TARGET,
    master::TARGET,
    node::TARGET,
    open::TARGET,
    store::TARGET,
    disk::TARGET,
    engine::TARGET,
    grpc::REQUEST,
    grpc::REPLY,
];

impl Target {
    /// The target of a name.
    pub fn named(name: &str) -> Option<&'static Target> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Reads an input, and holds what memory that took against its bound.
    pub fn check(&self, input: &[u8]) {
        let ((), peak) = heap::peak_of(|| (self.run)(input));
        let bound = self.memory + self.memory_per_byte * input.len();
        assert!(
            peak <= bound,
            "{}: {} bytes of input took {peak} bytes of memory, and {bound} are allowed",
            self.name,
            input.len()
        );
    }
}
