//! Disks that stall or are slow: the threads of a process are held in their calls by `strace`.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What a disk does for a node.
const CALLS: &str = "pwrite64,pwritev,write,fdatasync,fsync,sync_file_range,pread64";

/// A process whose threads that work on the disk are held in their calls. Needs `strace`, and the
/// right to trace, which root has.
pub(crate) struct Held(Child);

impl Held {
    /// Holds every thread for so long in each call, save the one that runs the turn and the
    /// sockets, which never waits for a disk.
    pub(crate) fn hold(process: u32, delay: Duration) -> Result<Held, String> {
        let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
        let tasks = tasks.map_err(|error| format!("the threads of {process}: {error}"))?;
        let threads = tasks.flatten().filter_map(|task| task.file_name().into_string().ok());
        let threads = threads.filter(|thread| *thread != process.to_string());
        let mut strace = Command::new("strace");
        strace.args(["-qq", "-o", "/dev/null", "-e", &format!("trace={CALLS}")]);
        let delay = delay.as_micros();
        strace.args(["-e", &format!("inject={CALLS}:delay_enter={delay}us")]);
        for thread in threads {
            strace.args(["-p", &thread]);
        }
        let quiet = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.spawn().map(Held).map_err(|error| format!("strace does not start: {error}"))
    }

    /// Whether this machine lets a process be held: tried on one that does nothing.
    pub(crate) fn is_possible() -> bool {
        let Ok(mut idle) = Command::new("sleep").arg("60").spawn() else { return false };
        let mut strace = Command::new("strace");
        strace.args(["-qq", "-o", "/dev/null", "-p", &idle.id().to_string()]);
        let quiet = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let traces = quiet.spawn().map(Held).is_ok_and(|held| {
            std::thread::sleep(Duration::from_millis(200));
            held.let_go().unwrap_or(false)
        });
        // It has done its work, whether or not it can be killed.
        let _ = idle.kill().and_then(|()| idle.wait());
        traces
    }

    /// Lets all go on; whether they were held until now.
    pub(crate) fn let_go(mut self) -> Result<bool, String> {
        let held = self.0.try_wait().is_ok_and(|ended| ended.is_none());
        let process = self.0.id().to_string();
        let told = Command::new("kill").args(["-INT", &process]).stderr(Stdio::null()).status();
        let ended = told.and_then(|_| self.0.wait());
        ended.map(|_| held).map_err(|error| format!("strace does not end: {error}"))
    }
}
