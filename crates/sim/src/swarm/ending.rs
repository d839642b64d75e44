//! The end of a run: all faults are over, and everything must come to rest.

use base::Micros;
use bytes::Bytes;

use super::{Failed, Guest, LIVENESS, Run};
use crate::cluster::IDLE_ALARM;
use crate::disk::DiskOptions;
use crate::network::NetworkOptions;

impl<G: Guest> Run<G> {
    pub(super) fn end_faults(&mut self) {
        self.working = false;
        self.cluster.stops_no_more = true;
        let world = &mut self.cluster.world;
        world.note("all faults end");
        world.disarm();
        world.network.heal();
        world.network.set_options(NetworkOptions::calm());
        for node in 0..world.nodes() {
            world.set_disk(node, DiskOptions::calm());
            world.set_wall_offset(node, 0);
            world.disk(node).set_fault(None);
            world.disk(node).set_bytes_max(None);
            if !world.is_up(node) {
                world.start(node);
            }
        }
    }

    /// Lets every open call end, then has every client's next call answered in time.
    pub(super) fn finish_calls(&mut self) -> Result<(), Failed> {
        let workers = 0..self.clients.len();
        let end = self.cluster.world.time() + self.options.timeout + Micros::from_secs(2);
        let operating = |run: &Run<G>| {
            run.operator.as_ref().is_some_and(|(operator, _)| operator.is_open())
                || run.steward.as_ref().is_some_and(|steward| steward.is_open)
        };
        while operating(self) || workers.clone().any(|worker| self.workload.is_open(worker)) {
            if self.cluster.world.time() > end {
                return Err(self.cluster.failed("a call does not end, long after its deadline"));
            }
            self.step()?;
        }
        // A full log may go on refusing until it is freed, but not for long.
        let end = self.cluster.world.time() + LIVENESS;
        for worker in workers {
            let answered = self.workload.counts().0;
            while self.workload.counts().0 == answered {
                if self.cluster.world.time() > end {
                    let last = self.workload.last_error();
                    let what = format!("a call is not answered, all faults being over: {last:?}");
                    return Err(self.cluster.failed(&what));
                }
                if !self.workload.is_open(worker) {
                    self.pause(Micros::from_millis(20))?;
                    self.work(worker);
                }
                self.step()?;
            }
        }
        Ok(())
    }

    fn pause(&mut self, span: Micros) -> Result<(), Failed> {
        let end = self.cluster.world.time() + span;
        self.cluster.world.alarm(span, IDLE_ALARM);
        while self.cluster.world.time() < end {
            self.step()?;
        }
        Ok(())
    }

    pub(super) fn read_all(&mut self) -> Result<(), Failed> {
        for key in self.workload.keys() {
            self.read(&key)?;
        }
        Ok(())
    }

    fn read(&mut self, key: &Bytes) -> Result<(), Failed> {
        let time = self.cluster.world.time();
        let (answered, _) = self.workload.counts();
        let body = self.workload.begin_read(0, time, key);
        self.cluster.world.call(self.clients[0], body, Some(LIVENESS));
        while self.workload.is_open(0) {
            self.step()?;
        }
        if self.workload.counts().0 == answered {
            let last = self.workload.last_error();
            let what = format!("a read fails, all faults being over: {last:?}");
            return Err(self.cluster.failed(&what));
        }
        Ok(())
    }
}
