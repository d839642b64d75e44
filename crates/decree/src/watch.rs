//! Watching a change of the plan come true: live on a terminal, in plain lines elsewhere.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use base::{ConfigNumber, GroupId, ShardId};
use router::{Configuration, Routes};
use serde_json::json;

use crate::ask::{Asker, failure_of};
use crate::failure::Failure;
use crate::output::{print_json, print_text};
use crate::view::{Progress, View};

/// Waits until every shard is where the newest configuration wants it and nothing is left of the
/// copies it took. Without `--timeout` it waits as long as that takes.
pub(crate) async fn watch(asker: &Asker, made: &Configuration) -> Result<(), Failure> {
    let deadline = asker.timeout.map(|timeout| Instant::now() + timeout);
    let mut plan = made.clone();
    let mut screen = Screen::new(asker.json);
    // Groups that give or take: what is dead in them must be known before the end.
    let mut groups: BTreeSet<GroupId> = BTreeSet::new();
    let mut to_move_max = 0;
    loop {
        let now = match look(asker, &mut plan, &mut groups).await {
            Ok(now) => now,
            Err(error) if is_passing(&error) => {
                screen.show(&Line::of_trouble(&error))?;
                give_up_after(deadline, &screen, &error.to_string())?;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(error) => return Err(failure_of(error)),
        };
        to_move_max = to_move_max.max(now.to_move);
        let line = now.line(to_move_max, plan.number);
        if now.is_settled() {
            screen.end(&line)?;
            return if now.barred == 0 { Ok(()) } else { Err(Failure::printed()) };
        }
        screen.show(&line)?;
        give_up_after(deadline, &screen, &line.text)?;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether what could not be read now may be read a moment later.
fn is_passing(error: &client::Error) -> bool {
    match error {
        client::Error::Unavailable(_)
        | client::Error::OutcomeUnknown(_)
        | client::Error::NobodyReachable(_) => true,
        client::Error::Refused(_) | client::Error::Invalid(_) => false,
    }
}

fn give_up_after(deadline: Option<Instant>, screen: &Screen, text: &str) -> Result<(), Failure> {
    if deadline.is_none_or(|deadline| Instant::now() < deadline) {
        return Ok(());
    }
    screen.leave_line();
    Err(Failure::error("unfinished", format!("the time is over, and it goes on: {text}")))
}

/// The state of the change at one moment.
struct Now {
    /// Shards that are not where the plan wants them.
    to_move: u64,
    /// Those of them that are not tried again.
    barred: u64,
    progress: Vec<Progress>,
    dead_copies: u64,
    /// Groups that took part, and of which no leader answers.
    silent: Vec<GroupId>,
}

async fn look(
    asker: &Asker,
    plan: &mut Configuration,
    groups: &mut BTreeSet<GroupId>,
) -> Result<Now, client::Error> {
    let routes = asker.client.newest_routes().await?;
    if routes.configuration != plan.number {
        // Somebody changed the plan again; what is watched is that it comes true.
        *plan = asker.client.query(None).await?.value;
    }
    let to_move = to_move(&routes, plan, groups);
    groups.extend(routes.handoffs.iter().flat_map(|handoff| [handoff.from, handoff.to]));
    let view = View::gather(asker, routes).await;
    let (dead_copies, silent) = view.dead_copies(groups);
    let barred = barred(&view.routes, plan);
    Ok(Now { to_move, barred, progress: view.progress(), dead_copies, silent })
}

/// How many shards are not where the plan wants them; those that have them and shall have them are
/// added to the groups. A shard that the plan gives nobody is where it shall be.
fn to_move(routes: &Routes, plan: &Configuration, groups: &mut BTreeSet<GroupId>) -> u64 {
    let mut count = 0;
    for (planned, owner) in plan.shards.iter().zip(&routes.owners) {
        let owner = owner.map(|owner| owner.group);
        if *planned != GroupId::MASTER && owner != Some(*planned) {
            count += 1;
            groups.insert(*planned);
            groups.extend(owner);
        }
    }
    count
}

/// How many shards are not where the plan wants them, and are not moved by it any more.
fn barred(routes: &Routes, plan: &Configuration) -> u64 {
    let elsewhere = |shard: &&ShardId| {
        let planned = plan.shards.get(usize::from(shard.0));
        let owner = routes.owner(**shard).map(|owner| owner.group);
        planned.is_some_and(|planned| *planned != GroupId::MASTER && owner != Some(*planned))
    };
    routes.barred.keys().filter(elsewhere).count() as u64
}

impl Now {
    fn is_settled(&self) -> bool {
        let under_way = self.to_move > self.barred || !self.progress.is_empty();
        !under_way && self.dead_copies == 0 && self.silent.is_empty()
    }

    fn line(&self, to_move_max: u64, number: ConfigNumber) -> Line {
        let moved = to_move_max - self.to_move;
        let mut text = format!("configuration {}: ", number.0);
        if self.is_settled() && self.barred == 0 {
            text.push_str("every shard is where it belongs");
        } else {
            text.push_str(&format!("{moved} of {to_move_max} shards moved"));
        }
        let (copied, bytes) = self.progress.iter().fold((0, 0), |(copied, bytes), progress| {
            (copied + progress.bytes * progress.percent() / 100, bytes + progress.bytes)
        });
        if !self.progress.is_empty() {
            let noun = if self.progress.len() == 1 { "hand-off" } else { "hand-offs" };
            text.push_str(&format!("; {} {noun} under way", self.progress.len()));
            if let Some(percent) = (copied * 100_u64).checked_div(bytes) {
                text.push_str(&format!(", {percent} % copied"));
            }
        }
        if self.dead_copies > 0 {
            text.push_str(&format!("; {} old copies to delete", self.dead_copies));
        }
        if self.barred > 0 {
            text.push_str(&format!("; {} stay where they are, see `decree status`", self.barred));
        }
        for group in &self.silent {
            text.push_str(&format!("; waits for group {}: no leader answers", group.0));
        }
        let silent: Vec<u64> = self.silent.iter().map(|group| group.0).collect();
        let json = json!({
            "configuration": number.0, "shards_moved": moved, "shards_to_move": self.to_move,
            "shards_barred": self.barred, "handoffs": self.progress.len(), "bytes": bytes, "bytes_copied": copied,
            "dead_copies": self.dead_copies, "waits_for": silent, "settled": self.is_settled()
        });
        Line { text, json }
    }
}

/// The same for people and for programs.
#[derive(PartialEq)]
struct Line {
    text: String,
    json: serde_json::Value,
}

impl Line {
    fn of_trouble(error: &client::Error) -> Line {
        Line { text: error.to_string(), json: json!({ "trouble": error.to_string() }) }
    }
}

/// Where the lines go. On a terminal there is one, which is written over.
struct Screen {
    json: bool,
    live: bool,
    last: Option<(Line, Instant)>,
}

impl Screen {
    fn new(json: bool) -> Screen {
        Screen { json, live: !json && io::stdout().is_terminal(), last: None }
    }

    fn show(&mut self, line: &Line) -> Result<(), Failure> {
        let changed = self.last.as_ref().is_none_or(|(last, _)| last != line);
        let rested = self.last.as_ref().is_none_or(|(_, at)| at.elapsed() >= LINE_INTERVAL);
        if !changed || !(self.live || rested) {
            return Ok(());
        }
        self.write(line)
    }

    /// The last line, whatever was shown before.
    fn end(&mut self, line: &Line) -> Result<(), Failure> {
        self.write(line)?;
        self.leave_line();
        Ok(())
    }

    fn write(&mut self, line: &Line) -> Result<(), Failure> {
        if self.json {
            print_json(&line.json)?;
        } else if self.live {
            // To the line's begin, and nothing of what stood there. It must not wrap.
            let columns = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| size.ws_col);
            let columns = if columns == 0 { COLUMNS_DEFAULT } else { usize::from(columns) };
            let text: String = line.text.chars().take(columns.saturating_sub(1)).collect();
            let mut out = io::stdout().lock();
            let written = write!(out, "\r\x1b[K{text}").and_then(|()| out.flush());
            written.map_err(|error| Failure::error("output", error.to_string()))?;
        } else {
            print_text(&line.text)?;
        }
        let line = Line { text: line.text.clone(), json: line.json.clone() };
        self.last = Some((line, Instant::now()));
        Ok(())
    }

    /// Whatever comes next begins on a line of its own.
    fn leave_line(&self) {
        if self.live && self.last.is_some() {
            println!();
        }
    }
}

/// Between two looks at the cluster.
const PAUSE: Duration = Duration::from_millis(200);
/// Between two lines where they stay.
const LINE_INTERVAL: Duration = Duration::from_secs(1);
const COLUMNS_DEFAULT: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;
    use base::{CopyId, ShardEpoch};
    use router::Owner;

    fn routes(owners: &[u64]) -> Routes {
        let owner = |group: &u64| {
            let group = GroupId(*group);
            (group.0 > 0).then_some(Owner { group, epoch: ShardEpoch(1), copy: CopyId(1) })
        };
        Routes { owners: owners.iter().map(owner).collect(), ..Routes::default() }
    }

    fn plan(shards: &[u64]) -> Configuration {
        let shards = shards.iter().copied().map(GroupId).collect();
        Configuration { shards, ..Configuration::default() }
    }

    #[test]
    fn shards_that_nobody_shall_have_are_where_they_belong() {
        let mut groups = BTreeSet::new();
        assert_eq!(to_move(&routes(&[1, 1, 2, 0]), &plan(&[0, 2, 2, 3]), &mut groups), 2);
        assert_eq!(groups, [1, 2, 3].map(GroupId).into());
    }

    #[test]
    fn it_is_not_over_while_old_copies_are_left_or_may_be() {
        let now = |dead_copies, silent: &[u64]| Now {
            to_move: 0,
            barred: 0,
            progress: Vec::new(),
            dead_copies,
            silent: silent.iter().copied().map(GroupId).collect(),
        };
        let line = |now: &Now| now.line(5, ConfigNumber(3)).text;
        assert!(now(0, &[]).is_settled());
        assert!(!now(1, &[]).is_settled());
        assert!(!now(0, &[2]).is_settled());
        let waits = "configuration 3: 5 of 5 shards moved; waits for group 2: no leader answers";
        assert_eq!(line(&now(0, &[2])), waits);
        let old = "configuration 3: 5 of 5 shards moved; 4 old copies to delete";
        assert_eq!(line(&now(4, &[])), old);
        assert_eq!(line(&now(0, &[])), "configuration 3: every shard is where it belongs");
    }
}
