//! Clients that work in the background of a story, and the judgement of all they were told.

use base::{Micros, Random};
use bytes::Bytes;

use crate::cluster::{Cluster, Failed, IDLE_ALARM};
use crate::guest::Guest;
use crate::history::{Ending, History};
use crate::linearizability;
use crate::workload::{Workload, WorkloadOptions};
use crate::world::Happening;

/// The clients.
pub struct Crew {
    workload: Workload,
    /// The world's number of each worker's client.
    clients: Vec<usize>,
    /// While it lasts, a call that has ended is followed by another.
    working: bool,
}

/// Alarms from this number on are those of a crew, one for each worker.
const CREW_ALARM: u64 = 1 << 40;
/// Nobody waits longer for an answer.
const PATIENCE: Micros = Micros::from_secs(60);
/// When nothing is in the way any more, a call ends within this time.
const CALL_MAX: Micros = Micros::from_secs(10);

impl<G: Guest> Cluster<G> {
    /// Clients that know these nodes begin to work.
    pub fn employ(&mut self, mut random: Random, options: WorkloadOptions, endpoints: &[usize]) {
        assert!(self.crew.is_none(), "one crew is enough");
        let mut clients = Vec::new();
        for _ in 0..options.clients() {
            let mut endpoints = endpoints.to_vec();
            random.shuffle(&mut endpoints);
            clients.push(self.world.add_client(endpoints, false, PATIENCE));
        }
        for worker in 0..clients.len() {
            self.world.alarm(Micros(random.below(1_000)), CREW_ALARM + worker as u64);
        }
        self.crew = Some(Crew { workload: Workload::new(random, options), clients, working: true });
    }

    /// Takes what concerns the crew out of what happened.
    pub(crate) fn on_crew(&mut self, happening: Happening) -> Result<Happening, Failed> {
        let Some(crew) = &mut self.crew else { return Ok(happening) };
        match happening {
            Happening::Alarm(number) if number >= CREW_ALARM && number != IDLE_ALARM => {
                if crew.working {
                    let worker = (number - CREW_ALARM) as usize;
                    let (body, reads) = crew.workload.begin(worker, self.world.time());
                    self.world.call_with(crew.clients[worker], body, None, reads);
                }
                Ok(Happening::Nothing)
            }
            Happening::Answered(client, answered) => {
                let Some(worker) = crew.clients.iter().position(|known| *known == client) else {
                    return Ok(Happening::Answered(client, answered));
                };
                let ended = crew.workload.end(worker, self.world.time(), answered.result);
                let pause = crew.workload.think();
                ended.map_err(|what| self.failed(&what))?;
                self.world.alarm(pause, CREW_ALARM + worker as u64);
                Ok(Happening::Nothing)
            }
            Happening::Nothing
            | Happening::Ticked(_)
            | Happening::Alarm(_)
            | Happening::Stopped(_)
            | Happening::Reached(_)
            | Happening::Fatal(..) => Ok(happening),
        }
    }

    /// No call follows any more, and those that are open end within this time.
    pub fn dismiss(&mut self, span: Micros) -> Result<(), Failed> {
        let end = self.world.time() + span;
        if let Some(crew) = &mut self.crew {
            crew.working = false;
        }
        while self.crew.as_ref().is_some_and(Crew::is_busy) {
            if self.world.time() >= end {
                return Err(self.failed("a call of the crew does not end"));
            }
            self.run_for(Micros::from_millis(1))?;
        }
        Ok(())
    }

    /// Reads every key once more, and judges all that the crew was told.
    pub fn judge(&mut self) -> Result<(), Failed> {
        for key in self.crew.as_ref().map(|crew| crew.workload.keys()).unwrap_or_default() {
            self.read_as_crew(&key)?;
        }
        let Some(crew) = &self.crew else { return Ok(()) };
        let history = crew.workload.history();
        let (answered, unknown) = crew.workload.counts();
        if unknown > 0 || crew.workload.last_error().is_some() {
            let last = crew.workload.last_error();
            let what = format!("of {answered} calls {unknown} have no known end: {last:?}");
            return Err(self.failed(&what));
        }
        history.check_elements().map_err(|what| self.failed(&what))?;
        linearizability::check(history).map_err(|violation| self.failed(&violation.to_string()))
    }

    fn read_as_crew(&mut self, key: &Bytes) -> Result<(), Failed> {
        let time = self.world.time();
        let Some(crew) = &mut self.crew else { return Ok(()) };
        let body = crew.workload.begin_read(0, time, key);
        self.world.call(crew.clients[0], body, Some(CALL_MAX));
        while self.crew.as_ref().is_some_and(|crew| crew.workload.is_open(0)) {
            self.run_for(Micros(100))?;
        }
        Ok(())
    }
}

impl Crew {
    fn is_busy(&self) -> bool {
        (0..self.clients.len()).any(|worker| self.workload.is_open(worker))
    }

    /// What was recorded so far.
    pub fn history(&self) -> &History {
        self.workload.history()
    }

    /// Calls that were answered.
    pub fn answered(&self) -> u64 {
        self.workload.counts().0
    }

    /// The longest that a call took that began at this time or later, one that is still open
    /// included.
    pub fn longest_wait(&self, since: Micros, now: Micros) -> Micros {
        let calls = self.history().calls().iter().filter(|call| call.start >= since.0);
        let waits = calls.map(|call| match call.ending {
            Ending::Answered { at, .. } => at - call.start,
            Ending::Unknown | Ending::Refused => now.0 - call.start,
        });
        Micros(waits.max().unwrap_or(0))
    }
}
