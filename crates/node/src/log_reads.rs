//! Old records of the log that replicas ask for, and a disk that fails to read them
//! (`docs/paxos.md` 11.3).

use base::GroupId;
use bytes::Bytes;
use paxos::Record;
use replica_group::turn::Level;
use storage::WalRead;

use crate::node::Node;

impl Node {
    /// A read of the log has ended, which replicas wait for.
    pub(crate) fn on_wal_read(&mut self, read: &WalRead, bytes: Result<Bytes, String>) {
        let Some(waiting) = self.loads.remove(&read.lsn) else { return };
        let now = self.now;
        if let Err(why) = &bytes
            && self.wal.read(read.lsn).is_some()
        {
            // A disk that fails to read may be read by the next start: where no other replica has
            // what is asked for, that is the only hope.
            if waiting.iter().any(|(group, _)| self.is_alone(*group)) {
                return self.fail(format!("{} of the write-ahead log: {why}", read.lsn));
            }
            // Who asks will ask again, or another; the record may be the only one that is whole.
            if !self.damage.is_unreadable_for_long(read.lsn, now.mono) {
                self.complain(Level::Error, format!("a read of {} fails: {why}", read.file));
                for (group, load) in waiting {
                    if let Some(hosted) = self.groups.get_mut(&group) {
                        hosted.loaded(now, &load, None);
                        self.dirty.insert(group);
                    }
                }
                return;
            }
        }
        self.damage.was_read(read.lsn);
        let payload = bytes
            .and_then(|bytes| self.wal.parse(read.lsn, &bytes).map_err(|error| error.to_string()));
        let payload = match payload {
            Ok((_, _, payload)) => Some(payload),
            // The log let go of it while it was read, and its file may hold something else by now:
            // nobody needs the record any more.
            Err(_) if self.wal.read(read.lsn).is_none() => None,
            Err(why) => {
                let place = format!("byte {} of {}: {why}", read.offset, read.file);
                self.on_damaged_records(read.lsn, read.lsn, &place);
                None
            }
        };
        for (group, load) in waiting {
            let decode = |payload| Record::decode_value(payload, load.index);
            let value = match payload.as_ref().map(decode).transpose() {
                Ok(value) => value,
                Err(error) => {
                    let lsn = read.lsn;
                    return self.fail(format!("{lsn} of the write-ahead log: {error}"));
                }
            };
            if let Some(hosted) = self.groups.get_mut(&group) {
                hosted.loaded(now, &load, value);
                self.dirty.insert(group);
            }
        }
    }

    /// Whether the replica here is its group's only one.
    fn is_alone(&self, group: GroupId) -> bool {
        self.groups.get(&group).is_some_and(|hosted| hosted.paxos().members().voters().len() == 1)
    }
}
