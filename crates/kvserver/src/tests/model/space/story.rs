//! How a search came to what is wrong, step by step.

use std::fmt::Write as _;

use super::{Move, Space, Turn, group_id};
use crate::tests::model::request;
use crate::tests::*;

impl Space {
    pub(super) fn tell(&self, number: u32, last: Option<Move>, wrong: &str) -> String {
        let mut choices: Vec<Move> = last.into_iter().collect();
        let mut number = number as usize;
        while number > 0 {
            choices.push(self.path[number].1);
            number = self.path[number].0 as usize;
        }
        let mut groups: Vec<Replica> =
            (0..self.bounds.groups).map(|group| Replica::of(group_id(group))).collect();
        let shards = self.bounds.shards_of(ShardEpoch(1));
        groups[0].time = super::TIME - 1;
        groups[0].apply(&Command::Create { copy: CopyId(1), shards });
        let mut story = String::new();
        for (step, choice) in choices.iter().rev().enumerate() {
            let _ = write!(story, "{:3}. ", step + 1);
            self.happen(*choice, &mut groups, &mut story);
        }
        let _ = write!(story, "wrong after {} steps: {wrong}", choices.len());
        story
    }

    fn happen(&self, choice: Move, groups: &mut [Replica], story: &mut String) {
        let (group, command) = match choice {
            Move::Deliver(letter) => {
                let (group, command) = self.letters.all[letter as usize];
                (group, self.command(command))
            }
            Move::Ask(number, group) => {
                (usize::from(group), request(&self.bounds, usize::from(number)))
            }
            Move::Master(turn) => {
                let does = match turn {
                    Turn::Plan => "plans a hand-off",
                    Turn::GiveUp => "gives it up",
                    Turn::Done => "takes it for done",
                    Turn::Cancelled => "takes it for cancelled",
                };
                let _ = writeln!(story, "the shard master {does}");
                return;
            }
            Move::Forget(group) => {
                let replica = &mut groups[usize::from(group)];
                replica.log.pop();
                replica.restart(0);
                let _ = writeln!(story, "{} loses its last command", replica.group);
                return;
            }
        };
        let replica = &mut groups[group];
        let _ = writeln!(story, "{} gets {}", replica.group, words::command(&command));
        let before = replica.told();
        replica.time = super::TIME - 1;
        let reply = replica.apply(&command);
        for (shard, is) in replica.told().into_iter().filter(|told| !before.contains(told)) {
            let _ = writeln!(story, "       {} {shard}: {is}", replica.group);
        }
        let _ = writeln!(story, "       answer: {}", words::reply(&reply));
    }
}
