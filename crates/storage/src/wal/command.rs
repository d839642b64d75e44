//! What the write-ahead log wants done to its disk, as data, and the one function that does it.

use std::io;

use base::Lsn;
use bytes::Bytes;

use crate::Disk;

/// Names a point in one of the two orders of commands: all commands of that order up to it. The
/// numbers grow by one within an order; the orders count apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalTicket(pub u64);

/// One thing to be done to the log's disk.
///
/// There are two orders of commands. Those of the foreground are carried out one after another,
/// each after all earlier ones, and reported by [`Wal::done`](crate::Wal::done) once synced.
/// Those of the background touch only files in which nothing lives; they have an order among
/// themselves, may run on another thread meanwhile, and are reported by
/// [`Wal::prepared`](crate::Wal::prepared). [`WalCommand::is_background`] tells them apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalCommand {
    /// Make a file of zeros (see [`Disk::create`]).
    Create {
        /// The command's place in its order.
        ticket: WalTicket,
        /// The file.
        file: String,
        /// Its length in bytes.
        len: u64,
        /// In the background, unless the log has already run out of prepared segments.
        background: bool,
    },
    /// Write a segment's header or a block; the sync is part of carrying it out.
    Write {
        /// The command's place in its order.
        ticket: WalTicket,
        /// The file.
        file: String,
        /// Where, in bytes; a multiple of the page size.
        offset: u64,
        /// What; a multiple of the page size long.
        bytes: Bytes,
    },
    /// Remove a file that nothing needs; always in the background.
    Remove {
        /// The command's place in its order.
        ticket: WalTicket,
        /// The file.
        file: String,
    },
}

impl WalCommand {
    /// The command's place in its order.
    pub fn ticket(&self) -> WalTicket {
        match self {
            WalCommand::Create { ticket, .. }
            | WalCommand::Write { ticket, .. }
            | WalCommand::Remove { ticket, .. } => *ticket,
        }
    }

    /// Whether it belongs to the background's order.
    pub fn is_background(&self) -> bool {
        match self {
            WalCommand::Create { background, .. } => *background,
            WalCommand::Write { .. } => false,
            WalCommand::Remove { .. } => true,
        }
    }
}

/// Where an old record of the log lies; its bytes go back through
/// [`Wal::parse`](crate::Wal::parse).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalRead {
    /// The file.
    pub file: String,
    /// Where the record begins, in bytes.
    pub offset: u64,
    /// How many bytes hold it with certainty.
    pub len: usize,
    /// The record.
    pub lsn: Lsn,
}

/// Carries out commands of one order, in order: all the writes first, then one sync of every file
/// that was written, so that any number of waiting blocks costs one sync. Returns the last ticket,
/// through which everything is then durable; none where there were no commands.
///
/// After an error nothing is known about what the disk holds: the process must end, save where
/// the commands were the background's
/// ([`Wal::preparation_failed`](crate::Wal::preparation_failed)), or where there was no room for
/// them ([`io::ErrorKind::StorageFull`], never said of a sync): then all of them may be carried out
/// once more.
pub fn execute(disk: &mut dyn Disk, commands: &[WalCommand]) -> io::Result<Option<WalTicket>> {
    let mut written: Vec<&str> = Vec::new();
    for pair in commands.windows(2) {
        assert!(
            pair[0].is_background() == pair[1].is_background(),
            "commands of both orders of the write-ahead log in one list"
        );
    }
    for command in commands {
        match command {
            WalCommand::Create { file, len, .. } => disk.create(file, *len)?,
            WalCommand::Write { file, offset, bytes, .. } => {
                disk.write(file, *offset, bytes)?;
                if !written.contains(&file.as_str()) {
                    written.push(file);
                }
            }
            WalCommand::Remove { file, .. } => disk.remove(file)?,
        }
    }
    for file in written {
        // What a sync that failed has lost is not known, whatever the reason was.
        disk.sync(file).map_err(|error| io::Error::other(error.to_string()))?;
    }
    Ok(commands.last().map(WalCommand::ticket))
}
