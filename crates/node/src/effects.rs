//! What the replicas want done, collected at the end of a turn: records to the log, messages to the
//! peers, replies to the doors.

use base::GroupId;
use paxos::{Load, Message, Record};
use replica_group::turn::Lane;
use replica_group::{ApplyError, ReplicaOutput};
use router::Reply;

use crate::frame::NodeMessage;
use crate::hosted::is_master;
use crate::node::Node;

impl Node {
    /// Lets every replica that may want something say so, until none does.
    pub(crate) fn collect(&mut self) {
        self.collect_dirty();
        // What was applied may have made the next step of a hand-off possible.
        while self.output.fatal.is_none() && self.drive_due_handoffs() {
            self.collect_dirty();
        }
    }

    fn collect_dirty(&mut self) {
        while let Some(group) = self.dirty.pop_first() {
            let Some(hosted) = self.groups.get_mut(&group) else { continue };
            let next = self.wal.next_lsn();
            match hosted.take_output(self.now, &mut self.overlay, next) {
                Ok(output) => self.carry_out(group, output),
                Err(error) => return self.fail_apply(group, &error),
            }
            if self.output.fatal.is_some() {
                return;
            }
        }
    }

    /// Lets the replicas say now what they want recorded, so that what is sent afterwards can wait
    /// for it to be durable.
    pub(crate) fn collect_now(&mut self) {
        self.collect();
    }

    pub(crate) fn fail_apply(&mut self, group: GroupId, error: &ApplyError) {
        match error {
            ApplyError::Engine(error) => self.on_store_error(group, error),
            ApplyError::Unknown(_) => self.fail(format!("group {}: {error}", group.0)),
        }
    }

    fn carry_out(&mut self, group: GroupId, output: ReplicaOutput<Reply>) {
        for record in &output.records {
            let state = matches!(record, Record::GroupState { .. } | Record::GroupCreate { .. });
            let lsn = self.wal.append(group, record.identity().as_bytes(), state, &mut |out| {
                record.encode_payload(out);
            });
            if matches!(record, Record::GroupCreate { .. } | Record::StoreLost) {
                self.created_at = lsn;
            }
        }
        self.note_fence(group);
        if let Some((slot, digest)) = output.digest {
            self.share_digest(group, slot, digest);
        }
        if output.applied > 0 {
            self.flush.written(self.now.mono);
            self.handoffs_due(group);
        }
        let (replica, row) = match self.groups.get(&group) {
            Some(hosted) => (hosted.paxos().replica(), hosted.paxos().heartbeat_row()),
            None => return,
        };
        self.rows.set(group, row);
        if output.peers_changed {
            self.rows.touch(group);
            self.learn_peers();
            self.tell_all_connected(group);
        }
        for (to, message) in output.messages {
            let known = self.groups.get(&group).and_then(|hosted| hosted.node_of(to));
            let stranger = || self.replicas.strangers.get(&(group, to)).copied();
            let Some(node) = known.or_else(stranger) else { continue };
            let lane = if is_bulk(&message) { Lane::Bulk } else { Lane::Protocol };
            self.send(node, lane, &NodeMessage::Paxos { group, from: replica, to, message });
        }
        for load in output.loads {
            let lsn = load.lsn;
            let waiting = self.loads.entry(lsn).or_default();
            waiting.push((group, load));
            if waiting.len() == 1 {
                match self.wal.read(lsn) {
                    Some(read) => self.output.wal_reads.push(read),
                    None => {
                        let now = self.now;
                        let waiting = self.loads.remove(&lsn).unwrap_or_default();
                        // What was forgotten since it was asked for need not be there.
                        let wanted = |(group, load): &(GroupId, Load)| {
                            let hosted = self.groups.get(group);
                            hosted.is_some_and(|h| h.paxos().first_slot() <= load.slot)
                        };
                        if waiting.iter().any(wanted) {
                            self.on_damaged_records(lsn, lsn, "it is not in the log");
                        }
                        for (group, load) in waiting {
                            if let Some(hosted) = self.groups.get_mut(&group) {
                                hosted.loaded(now, &load, None);
                            }
                        }
                    }
                }
            }
        }
        for (waiter, reply) in output.replies {
            self.on_executed(waiter, reply);
        }
        for waiter in output.readable {
            self.on_readable(group, waiter, None);
        }
        let (until, leased) = output.leased.unwrap_or_default();
        for waiter in leased {
            self.on_readable(group, waiter, Some(until));
        }
        for waiter in output.dropped {
            self.on_dropped(waiter);
        }
        self.wake_applied(group);
        if is_master(group) && output.applied > 0 {
            self.take_master_routes();
        }
    }
}

/// Whether a message is large and not urgent.
fn is_bulk(message: &Message) -> bool {
    matches!(message, Message::CatchUp(_))
}
