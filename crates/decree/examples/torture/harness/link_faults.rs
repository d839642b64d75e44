//! Faults of links: the rules that each consists of, and when they come and go.

use std::collections::BTreeSet;
use std::time::Duration;

use base::Random;

use super::classes::OfLink;
use super::links::{Mode, Pair};

/// What comes to pass after a time: rules in place of those before, or broken connections.
#[derive(Clone, Debug)]
pub(crate) enum Turn {
    Rule(Vec<(Pair, Mode)>),
    Reset(Vec<Pair>),
}

/// The plan of a fault.
pub(crate) struct Plan<'a> {
    pub(crate) nodes: &'a [u64],
    pub(crate) random: &'a mut Random,
    /// Spans are divided by this.
    pub(crate) haste: u32,
}

impl Plan<'_> {
    fn span(&mut self, millis: u64) -> Duration {
        Duration::from_millis(self.random.between(millis / 10, millis)) / self.haste
    }

    /// All ordered pairs of nodes, in random order.
    fn pairs(&mut self) -> Vec<Pair> {
        let all = self.nodes.iter().flat_map(|from| self.nodes.iter().map(|to| (*from, *to)));
        let mut pairs: Vec<Pair> = all.filter(|(from, to)| from != to).collect();
        self.random.shuffle(&mut pairs);
        pairs
    }

    /// The turns of a fault, each with the time after which it comes.
    pub(crate) fn turns(&mut self, class: OfLink) -> Vec<(Duration, Turn)> {
        let rules = match class {
            OfLink::Partition | OfLink::Isolated | OfLink::OneWay | OfLink::Partial => {
                self.cut(class)
            }
            OfLink::Lossy => self.bad(|random| Mode::Lossy(random.between(5, 100)), usize::MAX),
            OfLink::Late => self.bad(|random| Mode::Late(random.between(5, 400)), usize::MAX),
            OfLink::Narrow => self.bad(|random| Mode::Narrow(random.between(20_000, 200_000)), 8),
            OfLink::Swallowed => self.bad(|_| Mode::Swallowed, 5),
            OfLink::Programs => self.programs(),
            OfLink::Swizzle => return self.swizzle(),
            OfLink::Flapping => return self.flap(),
            OfLink::Reset => return self.reset(),
        };
        let span = self.span(8_000);
        vec![(Duration::ZERO, Turn::Rule(rules)), (span, Turn::Rule(Vec::new()))]
    }

    fn cut(&mut self, class: OfLink) -> Vec<(Pair, Mode)> {
        let (pairs, kind) = (self.pairs(), self.random.below(3));
        let (one, some) = (pairs[0].0, self.random.between(2, 6) as usize);
        let mut shuffled = self.nodes.to_vec();
        self.random.shuffle(&mut shuffled);
        let side: BTreeSet<u64> = shuffled.into_iter().take(self.nodes.len() / 2).collect();
        let is_cut = |at: usize, (from, to): Pair| match (class, kind) {
            (OfLink::Partition, _) => side.contains(&from) != side.contains(&to),
            (OfLink::Isolated, _) => from == one || to == one,
            // It hears and is not heard, or the other way round, or that is so for some pairs.
            (OfLink::OneWay, 0) => from == one,
            (OfLink::OneWay, 1) => to == one,
            // Only one is connected to all; or they are so in a row; or two are not.
            (OfLink::Partial, 0) => from != one && to != one,
            (OfLink::Partial, 1) => from.abs_diff(to) > 1,
            (OfLink::Partial, _) => [from, to].iter().all(|n| [pairs[0].0, pairs[0].1].contains(n)),
            _ => at < some,
        };
        let all = pairs.iter().enumerate().filter(|(at, pair)| is_cut(*at, **pair));
        all.map(|(_, pair)| (*pair, Mode::Cut)).collect()
    }

    /// Some links, at most so many, are so.
    fn bad(&mut self, mode: impl Fn(&mut Random) -> Mode, most: usize) -> Vec<(Pair, Mode)> {
        let (mut pairs, mode) = (self.pairs(), mode(self.random));
        let most = most.min(pairs.len());
        pairs.truncate(self.random.between(1, most as u64) as usize);
        pairs.into_iter().map(|pair| (pair, mode)).collect()
    }

    /// Between programs and nodes.
    fn programs(&mut self) -> Vec<(Pair, Mode)> {
        let modes = [Mode::Cut, Mode::Late(200), Mode::Swallowed, Mode::Narrow(100_000)];
        let mode = self.random.pick(&modes).copied().unwrap_or_default();
        let mut nodes = self.nodes.to_vec();
        self.random.shuffle(&mut nodes);
        nodes.truncate(self.random.between(1, self.nodes.len() as u64) as usize);
        nodes.into_iter().map(|node| ((0, node), mode)).collect()
    }

    /// Some nodes are cut off one after the other, and come back in another order.
    fn swizzle(&mut self) -> Vec<(Duration, Turn)> {
        let pairs = self.pairs();
        let mut chosen = self.nodes.to_vec();
        self.random.shuffle(&mut chosen);
        chosen.truncate(3);
        let leaving = chosen.clone();
        self.random.shuffle(&mut chosen);
        let mut off: BTreeSet<u64> = BTreeSet::new();
        let rules = |off: &BTreeSet<u64>| {
            let is_cut = |(from, to): &&Pair| off.contains(from) || off.contains(to);
            Turn::Rule(pairs.iter().filter(is_cut).map(|pair| (*pair, Mode::Cut)).collect())
        };
        let (mut at, mut turns) = (Duration::ZERO, Vec::new());
        for node in leaving {
            off.insert(node);
            turns.push((at, rules(&off)));
            at += self.span(1_500);
        }
        for node in chosen {
            off.remove(&node);
            turns.push((at, rules(&off)));
            at += self.span(1_500);
        }
        turns
    }

    /// Some links come and go.
    fn flap(&mut self) -> Vec<(Duration, Turn)> {
        let mut pairs = self.pairs();
        pairs.truncate(self.random.between(2, 8) as usize);
        let rules: Vec<(Pair, Mode)> = pairs.into_iter().map(|pair| (pair, Mode::Cut)).collect();
        let (mut at, mut turns) = (Duration::ZERO, Vec::new());
        for _ in 0..self.random.between(4, 10) {
            turns.push((at, Turn::Rule(rules.clone())));
            at += self.span(900);
            turns.push((at, Turn::Rule(Vec::new())));
            at += self.span(900);
        }
        turns
    }

    /// Connections break now and then.
    fn reset(&mut self) -> Vec<(Duration, Turn)> {
        let mut at = Duration::ZERO;
        let times = self.random.between(1, 6);
        let turns = (0..times).map(|_| {
            let mut pairs = self.pairs();
            pairs.truncate(self.random.between(1, 5) as usize);
            pairs.push((0, pairs[0].0));
            let turn = (at, Turn::Reset(pairs));
            at += self.span(1_500);
            turn
        });
        turns.collect()
    }
}
