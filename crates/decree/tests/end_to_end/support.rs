//! Running the program and clusters of it. Whatever is started here ends with the test, however
//! that ends: a cluster lives as long as the pipe to its `dev`, single nodes are killed on drop.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A program that has not ended by then hangs.
const RUN_TIME_MAX: Duration = Duration::from_secs(90);

/// How a run of the program ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Finished {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// How many lines it printed.
    pub(crate) fn lines(&self) -> usize {
        self.text().lines().count()
    }

    /// Its lines of JSON.
    pub(crate) fn json(&self) -> Vec<Value> {
        assert_eq!(self.code, 0, "{self:?}");
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// The program, untouched by the environment of whoever runs the tests.
pub(crate) fn decree() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_decree"));
    command.env_remove("DECREE_ENDPOINTS");
    command
}

/// Runs the program with nothing on standard input.
pub(crate) fn run(arguments: &[&str]) -> Finished {
    run_with_input(arguments, b"")
}

/// Runs the program with this on standard input.
pub(crate) fn run_with_input(arguments: &[&str], input: &[u8]) -> Finished {
    let mut command = decree();
    command.args(arguments);
    finish(command, input)
}

/// Runs a command to its end.
pub(crate) fn finish(mut command: Command, input: &[u8]) -> Finished {
    let shown = format!("{command:?}");
    let mut process = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = process.stdin.take().unwrap();
    let input = input.to_vec();
    // A program that ends without reading its input closes the pipe; that is its good right.
    thread::spawn(move || pipe.write_all(&input).ok());
    let mut out = process.stdout.take().unwrap();
    let mut err = process.stderr.take().unwrap();
    let stdout = thread::spawn(move || {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).map(|_| bytes).unwrap()
    });
    let stderr = thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).map(|_| text).unwrap()
    });
    let Some(code) = wait(&mut process, RUN_TIME_MAX) else {
        process.kill().unwrap();
        process.wait().unwrap();
        panic!("did not end: {shown}: {}", stderr.join().unwrap());
    };
    Finished { code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// Waits for a process; its exit code, -1 where a signal ended it, none if it goes on.
pub(crate) fn wait(process: &mut Child, longest: Duration) -> Option<i32> {
    let begun = Instant::now();
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return Some(status.code().unwrap_or(-1));
        }
        if begun.elapsed() > longest {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, longest: Duration, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < longest, "did not happen within {longest:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Lines that a process has written so far, collected by a thread.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Collected>);

#[derive(Default)]
struct Collected {
    lines: Mutex<Vec<String>>,
    ended: AtomicBool,
}

impl Lines {
    fn collect(from: impl Read + Send + 'static) -> Lines {
        let lines = Lines::default();
        let collected = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                collected.0.lines.lock().unwrap().push(line);
            }
            collected.0.ended.store(true, Ordering::Release);
        });
        lines
    }

    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lines.lock().unwrap().clone()
    }

    /// Waits until all is collected that a process wrote which has ended: its last lines may still
    /// be in the pipe.
    fn wait_for_end(&self) {
        eventually("the output ends", RUN_TIME_MAX, || self.0.ended.load(Ordering::Acquire));
    }

    pub(crate) fn find(&self, part: &str) -> Option<String> {
        self.all().into_iter().find(|line| line.contains(part))
    }

    /// Waits for a line with this part.
    pub(crate) fn wait_for(&self, part: &str) -> String {
        let begun = Instant::now();
        loop {
            if let Some(line) = self.find(part) {
                return line;
            }
            let late = begun.elapsed() > RUN_TIME_MAX;
            assert!(!late, "no line with `{part}` among {:#?}", self.all());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A cluster run by `decree dev`.
pub(crate) struct Dev {
    process: Child,
    /// The cluster stops when it closes.
    input: Option<ChildStdin>,
    pub(crate) stdout: Lines,
    pub(crate) stderr: Lines,
    directory: PathBuf,
    nodes: Vec<(u64, u32)>,
    /// Nodes that were brought back by hand.
    restarted: Vec<Node>,
}

impl Dev {
    /// Starts a cluster on free ports, and waits until it serves.
    pub(crate) fn start(directory: &Path, options: &[&str]) -> Dev {
        let mut process = decree()
            .args(["dev", "--base-port", "0", "--data-dir"])
            .arg(directory)
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = Lines::collect(process.stdout.take().unwrap());
        let stderr = Lines::collect(process.stderr.take().unwrap());
        let input = process.stdin.take();
        let mut dev = Dev {
            process,
            input,
            stdout,
            stderr,
            directory: directory.to_owned(),
            nodes: Vec::new(),
            restarted: Vec::new(),
        };
        dev.wait_until_served();
        dev
    }

    fn wait_until_served(&mut self) {
        let begun = Instant::now();
        let table =
            |lines: &Lines| lines.all().iter().any(|line| line.contains("another terminal"));
        while !table(&self.stdout) && !table(&self.stderr) {
            let ended = self.process.try_wait().unwrap();
            let late = begun.elapsed() > RUN_TIME_MAX;
            assert!(ended.is_none() && !late, "no cluster ({ended:?}): {:#?}", self.stderr.all());
            thread::sleep(Duration::from_millis(10));
        }
        let lines = [self.stdout.all(), self.stderr.all()].concat();
        self.nodes = lines
            .iter()
            .skip_while(|line| !line.starts_with("NODE"))
            .skip(1)
            .map_while(|line| {
                let mut words = line.split_whitespace();
                Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
            })
            .collect();
    }

    /// The gRPC addresses of its nodes.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.ports().iter().map(|ports| format!("127.0.0.1:{}", ports["grpc"])).collect()
    }

    /// The ports of its nodes, as its data directory keeps them.
    pub(crate) fn ports(&self) -> Vec<Value> {
        let kept = std::fs::read(self.directory.join("dev.json")).unwrap();
        let kept: Value = serde_json::from_slice(&kept).unwrap();
        kept["ports"].as_array().unwrap().clone()
    }

    /// Runs a command against it.
    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        self.run_with_input(arguments, b"")
    }

    /// Runs a command against it, with this on standard input.
    pub(crate) fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Finished {
        let mut command = decree();
        command.args(["--endpoints", &self.endpoints().join(",")]).args(arguments);
        finish(command, input)
    }

    /// The numbers of its nodes.
    pub(crate) fn nodes(&self) -> Vec<u64> {
        self.nodes.iter().map(|(node, _)| *node).collect()
    }

    /// Kills a node with SIGKILL; the line that brings it back, as `dev` prints it.
    pub(crate) fn kill_node(&mut self, node: u64) -> String {
        if let Some(at) = self.restarted.iter().position(|restarted| restarted.node == node) {
            let killed = self.restarted.remove(at);
            return killed.line.clone();
        }
        let (_, process) = self.nodes.iter().find(|(number, _)| *number == node).unwrap();
        kill(*process);
        self.stderr.wait_for(&format!("node {node} (process {process}) ended"));
        let part = format!("serve --data-dir {}", self.directory.canonicalize().unwrap().display());
        let part = format!("{part}/node{node} ");
        let line = self.stderr.wait_for(&part);
        line.split_once("brings it back: ").unwrap().1.to_owned()
    }

    /// Runs a line that brings a node back.
    pub(crate) fn restart_node(&mut self, node: u64, line: &str) {
        self.restarted.push(Node::start(node, line));
    }

    /// Sends a signal to `dev` itself.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.process.id().to_string())
            .status();
        assert!(status.unwrap().success());
    }

    /// Whether no process of the cluster is left.
    pub(crate) fn all_gone(&self) -> bool {
        self.nodes.iter().all(|(_, process)| !is_alive(*process))
    }

    /// Closes its input and waits for its end.
    pub(crate) fn stop(mut self) -> i32 {
        self.input = None;
        self.wait_for_end()
    }

    /// Waits for its end.
    pub(crate) fn wait_for_end(&mut self) -> i32 {
        let code = wait(&mut self.process, RUN_TIME_MAX);
        let code = code.unwrap_or_else(|| panic!("dev does not end: {:#?}", self.stderr.all()));
        self.stderr.wait_for_end();
        code
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        self.input = None;
        if wait(&mut self.process, Duration::from_secs(15)).is_none() {
            // Its nodes end with the pipes that it held.
            self.process.kill().ok();
            self.process.wait().ok();
        }
    }
}

/// One node, run by `decree serve`, or whatever else a line runs.
pub(crate) struct Node {
    node: u64,
    line: String,
    process: Child,
    pub(crate) stderr: Lines,
}

impl Node {
    /// Runs a line that a shell would take.
    pub(crate) fn start(node: u64, line: &str) -> Node {
        let words = shlex::split(line).unwrap();
        let mut process = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = Lines::collect(process.stderr.take().unwrap());
        Node { node, line: line.to_owned(), process, stderr }
    }

    /// Sends it a signal, such as STOP.
    pub(crate) fn signal(&self, name: &str) {
        let process = self.process.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &process]).status();
        assert!(status.unwrap().success());
    }

    /// Its exit code, should it end soon; what it said is complete then.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let code = wait(&mut self.process, Duration::from_secs(20))?;
        self.stderr.wait_for_end();
        Some(code)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Nodes of a cluster that is put together by hand.
pub(crate) struct ByHand {
    pub(crate) grpc: Vec<u16>,
    pub(crate) peer: Vec<u16>,
    pub(crate) directory: tempfile::TempDir,
}

impl ByHand {
    /// Free ports for so many nodes, and an empty directory.
    pub(crate) fn new(nodes: usize) -> ByHand {
        ByHand {
            grpc: (0..nodes).map(|_| free_port()).collect(),
            peer: (0..nodes).map(|_| free_port()).collect(),
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn masters(&self) -> String {
        let masters: Vec<String> =
            self.peer.iter().take(3).map(|port| format!("127.0.0.1:{port}")).collect();
        masters.join(",")
    }

    pub(crate) fn endpoint(&self, node: u64) -> String {
        format!("127.0.0.1:{}", self.grpc[node as usize - 1])
    }

    /// The line that starts a node.
    pub(crate) fn line(&self, node: u64, more: &str) -> String {
        let (at, home) = (node as usize - 1, self.directory.path().join(format!("n{node}")));
        format!(
            "{} serve --data-dir {} --node {node} --masters {} --grpc-port {} --peer-port {} {more}",
            env!("CARGO_BIN_EXE_decree"),
            home.display(),
            self.masters(),
            self.grpc[at],
            self.peer[at],
        )
    }

    /// Starts a node.
    pub(crate) fn start(&self, node: u64) -> Node {
        Node::start(node, &self.line(node, ""))
    }
}

/// A port that is free now and stays so as long as nobody else takes ports by number: it lies
/// below the range from which the system takes those of outgoing connections.
pub(crate) fn free_port() -> u16 {
    use std::hash::{BuildHasher, Hasher};
    loop {
        let random = std::hash::RandomState::new().build_hasher().finish();
        let port = 10_000 + (random % 22_000) as u16;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn kill(process: u32) {
    let status = Command::new("kill").args(["-9", &process.to_string()]).status().unwrap();
    assert!(status.success());
}

fn is_alive(process: u32) -> bool {
    let mut probe = Command::new("kill");
    probe.args(["-0", &process.to_string()]).stderr(Stdio::null());
    probe.status().unwrap().success()
}
