//! The virtual network: whether a message arrives, when, and how often.
//!
//! Every message has its own delay, so messages overtake each other. Cuts act on messages that are
//! sent while they last.

use std::collections::BTreeSet;

use base::{Micros, Random};
use smallvec::{SmallVec, smallvec};

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The node with this index.
    Node(usize),
    /// The client with this index.
    Client(usize),
}

/// How messages fare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkOptions {
    /// Shortest way of a message.
    pub delay_min: Micros,
    /// Longest way of an ordinary message.
    pub delay_max: Micros,
    /// Of 10,000 messages so many are lost.
    pub lost: u64,
    /// Of 10,000 messages so many arrive twice.
    pub doubled: u64,
    /// Of 10,000 messages so many are held up, for as long as `held_max`.
    pub held: u64,
    /// The longest way of a message that is held up.
    pub held_max: Micros,
}

impl NetworkOptions {
    /// A network of one room without faults.
    pub fn calm() -> NetworkOptions {
        NetworkOptions {
            delay_min: Micros(100),
            delay_max: Micros(500),
            lost: 0,
            doubled: 0,
            held: 0,
            held_max: Micros(0),
        }
    }
}

/// The network.
#[derive(Debug)]
pub struct Network {
    random: Random,
    options: NetworkOptions,
    /// From, to: messages on this way are lost.
    cut: BTreeSet<(Place, Place)>,
    /// Everything from and to these is lost, clients included.
    alone: BTreeSet<Place>,
    sent: u64,
    lost: u64,
}

impl Network {
    /// A network without cuts.
    pub fn new(random: Random, options: NetworkOptions) -> Network {
        Network { random, options, cut: BTreeSet::new(), alone: BTreeSet::new(), sent: 0, lost: 0 }
    }

    /// Other chances from now on.
    pub fn set_options(&mut self, options: NetworkOptions) {
        self.options = options;
    }

    /// A message is sent now: when it arrives, which may be never or twice.
    pub fn send(&mut self, from: Place, to: Place) -> SmallVec<[Micros; 2]> {
        self.sent += 1;
        if self.is_cut(from, to) || self.random.chance(self.options.lost, 10_000) {
            self.lost += 1;
            return SmallVec::new();
        }
        let mut arrivals = smallvec![self.delay()];
        if self.random.chance(self.options.doubled, 10_000) {
            arrivals.push(self.delay());
        }
        arrivals
    }

    fn delay(&mut self) -> Micros {
        let NetworkOptions { delay_min, delay_max, held, held_max, .. } = self.options;
        if self.random.chance(held, 10_000) {
            return Micros(self.random.between(delay_min.0, held_max.0.max(delay_max.0)));
        }
        Micros(self.random.between(delay_min.0, delay_max.0))
    }

    /// Whether messages on this way are lost.
    pub fn is_cut(&self, from: Place, to: Place) -> bool {
        let is_apart = self.alone.contains(&from) || self.alone.contains(&to);
        self.cut.contains(&(from, to)) || is_apart && from != to
    }

    /// Loses everything from and to a place, whoever the others are, or no more.
    pub fn isolate(&mut self, place: Place, alone: bool) {
        if alone {
            self.alone.insert(place);
        } else {
            self.alone.remove(&place);
        }
    }

    /// Cuts one way.
    pub fn cut(&mut self, from: Place, to: Place) {
        self.cut.insert((from, to));
    }

    /// Mends one way.
    pub fn mend(&mut self, from: Place, to: Place) {
        self.cut.remove(&(from, to));
    }

    /// Cuts every link between nodes of different blocks, and mends all others between nodes. A
    /// node in no block is alone.
    pub fn partition(&mut self, nodes: usize, blocks: &[Vec<usize>]) {
        let block = |node: usize| blocks.iter().position(|block| block.contains(&node));
        for from in 0..nodes {
            for to in 0..nodes {
                let together = block(from).is_some() && block(from) == block(to);
                if from == to || together {
                    self.mend(Place::Node(from), Place::Node(to));
                } else {
                    self.cut(Place::Node(from), Place::Node(to));
                }
            }
        }
    }

    /// Mends everything.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.alone.clear();
    }

    /// Messages sent and lost so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.sent, self.lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_hold_about_and_delays_exactly() {
        let options = NetworkOptions {
            delay_min: Micros(10),
            delay_max: Micros(20),
            lost: 1_000,
            doubled: 500,
            held: 100,
            held_max: Micros(1_000),
        };
        let mut network = Network::new(Random::new(1), options);
        let (mut none, mut twice, mut held) = (0, 0, 0);
        for _ in 0..20_000 {
            let arrivals = network.send(Place::Node(0), Place::Node(1));
            none += u32::from(arrivals.is_empty());
            twice += u32::from(arrivals.len() == 2);
            held += arrivals.iter().filter(|delay| delay.0 > 20).count();
            assert!(arrivals.iter().all(|delay| (10..=1_000).contains(&delay.0)));
        }
        assert!((1_800..2_200).contains(&none), "{none}");
        assert!((800..1_000).contains(&twice), "{twice}");
        assert!((120..260).contains(&held), "{held}");
    }

    #[test]
    fn partitions_cut_between_blocks_and_one_way_cuts_one_way() {
        let mut network = Network::new(Random::new(1), NetworkOptions::calm());
        network.partition(5, &[vec![0, 1], vec![2, 3]]);
        let reaches = |network: &mut Network, from: usize, to: usize| {
            !network.send(Place::Node(from), Place::Node(to)).is_empty()
        };
        assert!(reaches(&mut network, 0, 1) && reaches(&mut network, 3, 2));
        assert!(!reaches(&mut network, 0, 2) && !reaches(&mut network, 3, 1));
        assert!(!reaches(&mut network, 4, 0) && !reaches(&mut network, 2, 4));
        network.heal();
        network.cut(Place::Node(0), Place::Node(1));
        assert!(!reaches(&mut network, 0, 1) && reaches(&mut network, 1, 0));
        network.mend(Place::Node(0), Place::Node(1));
        assert!(reaches(&mut network, 0, 1));
    }
}
