//! A cluster of real processes on this machine, each a node run by `decree serve`. All of them end
//! with the program that started them.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The processes, their ports and their data.
pub(crate) struct Cluster {
    binary: PathBuf,
    directory: PathBuf,
    base: u16,
    masters: u16,
    nodes: Vec<Option<Child>>,
    options: Vec<String>,
    hosts: Option<Hosts>,
}

/// Addresses of this machine at which nodes listen, and others by which they are known, so that
/// something can stand in between; one of each for every node.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    pub(crate) listening: Vec<String>,
    pub(crate) advertised: Vec<String>,
}

impl Cluster {
    /// A cluster of so many nodes, the first of which are masters, on ports counted from `base`.
    /// Nothing runs yet.
    pub(crate) fn new(name: &str, base: u16, nodes: u16, masters: u16) -> Cluster {
        let binary = std::env::current_exe().expect("a path");
        let binary = binary.parent().and_then(Path::parent).expect("a target").join("decree");
        assert!(binary.exists(), "{} is missing: build the program first", binary.display());
        let directory = format!("decree-{name}-{}", std::process::id());
        let directory = std::env::temp_dir().join(directory);
        std::fs::create_dir_all(&directory).expect("a directory");
        let nodes = (0..nodes).map(|_| None).collect();
        Cluster { binary, directory, base, masters, nodes, options: Vec::new(), hosts: None }
    }

    /// Gives each node an address of its own.
    pub(crate) fn set_hosts(&mut self, hosts: Hosts) {
        self.hosts = Some(hosts);
    }

    /// Starts every node with these further options of `decree serve`, and creates the cluster.
    pub(crate) fn create(&mut self, shards: u16, options: &[&str]) {
        self.set_options(options);
        for node in 1..=self.nodes.len() as u64 {
            self.start(node);
        }
        self.init(shards);
    }

    /// Further options of `decree serve` for all nodes that are started from now on.
    pub(crate) fn set_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(|option| (*option).to_owned()).collect();
    }

    /// Creates the cluster, of which the masters run.
    pub(crate) fn init(&self, shards: u16) {
        self.run(&["init", "--masters", &self.masters(), "--shards", &shards.to_string()]);
    }

    /// Where the nodes keep their data and logs.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Removes all data.
    pub(crate) fn remove(mut self) {
        self.kill_all();
        std::fs::remove_dir_all(&self.directory).expect("the directory goes");
    }

    fn masters(&self) -> String {
        let at = |node: u64| format!("{}:{}", self.advertised_host(node), self.peer_port(node));
        (1..=u64::from(self.masters)).map(at).collect::<Vec<_>>().join(",")
    }

    fn host(&self, node: u64) -> &str {
        let hosts = self.hosts.as_ref().map(|hosts| &hosts.listening[node as usize - 1]);
        hosts.map_or("127.0.0.1", String::as_str)
    }

    fn advertised_host(&self, node: u64) -> &str {
        let hosts = self.hosts.as_ref().map(|hosts| &hosts.advertised[node as usize - 1]);
        hosts.map_or("127.0.0.1", String::as_str)
    }

    /// The port at which a node serves programs.
    pub(crate) fn grpc_port(&self, node: u64) -> u16 {
        self.base + 100 + node as u16
    }

    /// The port at which a node takes frames of the others.
    pub(crate) fn peer_port(&self, node: u64) -> u16 {
        self.base + 300 + node as u16
    }

    /// The gRPC address at which a node listens.
    pub(crate) fn endpoint(&self, node: u64) -> String {
        format!("{}:{}", self.host(node), self.grpc_port(node))
    }

    /// The gRPC address by which a node is known.
    pub(crate) fn advertised(&self, node: u64) -> String {
        format!("{}:{}", self.advertised_host(node), self.grpc_port(node))
    }

    /// The gRPC addresses of all nodes.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        (1..=self.nodes.len() as u64).map(|node| self.endpoint(node)).collect()
    }

    /// Starts a node, for the first time or again.
    pub(crate) fn start(&mut self, node: u64) {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join(format!("node{node}.log")))
            .expect("a log file");
        let child = Command::new(&self.binary)
            .args(["serve", "--node", &node.to_string(), "--masters", &self.masters()])
            .args(["--host", self.host(node), "--advertise", self.advertised_host(node)])
            .args(["--base-port", &self.base.to_string(), "--data-dir"])
            .arg(self.home(node))
            .args(&self.options)
            // It ends with the program that started it, however that ends; but Ctrl-C is for that
            // program.
            .arg("--parent-pipe")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("a node starts");
        self.nodes[node as usize - 1] = Some(child);
    }

    /// Kills a node by SIGKILL.
    pub(crate) fn kill(&mut self, node: u64) {
        if let Some(mut child) = self.nodes[node as usize - 1].take() {
            child.kill().expect("a node is killed");
            child.wait().expect("a node is gone");
        }
    }

    /// Sends a signal, such as STOP, to a node.
    pub(crate) fn signal(&self, node: u64, name: &str) {
        let mut kill = Command::new("kill");
        let status = kill.args([&format!("-{name}"), &self.process(node).to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()), "node {node} gets no SIG{name}");
    }

    /// The number of a node's process.
    pub(crate) fn process(&self, node: u64) -> u32 {
        self.nodes[node as usize - 1].as_ref().expect("the node runs").id()
    }

    /// Whether a node runs, or stands still; the exit of one that ended by itself is taken by
    /// [`Cluster::ended`].
    pub(crate) fn is_up(&self, node: u64) -> bool {
        self.nodes[node as usize - 1].is_some()
    }

    /// How a node ended that nobody killed.
    pub(crate) fn ended(&mut self, node: u64) -> Option<ExitStatus> {
        let child = self.nodes[node as usize - 1].as_mut()?;
        let status = child.try_wait().expect("the child is ours")?;
        self.nodes[node as usize - 1] = None;
        Some(status)
    }

    /// Stops a node by SIGTERM, and waits so long at most: how it ended, none where it goes on.
    pub(crate) async fn stop(&mut self, node: u64, longest: Duration) -> Option<ExitStatus> {
        let begun = Instant::now();
        let mut asked = false;
        loop {
            if let Some(status) = self.ended(node) {
                return Some(status);
            }
            if begun.elapsed() >= longest {
                return None;
            }
            // Before its first instructions the system would end it, which says nothing of it.
            if !asked && self.listens_for_sigterm(node) {
                self.signal(node, "TERM");
                asked = true;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Whether the process of a node has said what it does on SIGTERM.
    fn listens_for_sigterm(&self, node: u64) -> bool {
        const SIGTERM: u32 = 15;
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process(node)));
        let status = status.unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
        caught.is_some_and(|bits| bits >> (SIGTERM - 1) & 1 == 1)
    }

    /// The data directory of a node.
    pub(crate) fn home(&self, node: u64) -> PathBuf {
        self.directory.join(format!("node{node}"))
    }

    /// What a node has logged in all its lives.
    pub(crate) fn log(&self, node: u64) -> String {
        let bytes = std::fs::read(self.directory.join(format!("node{node}.log")));
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    }

    /// The processor time that a node has used, in seconds.
    pub(crate) fn processor_seconds(&self, node: u64) -> f64 {
        let Some(child) = &self.nodes[node as usize - 1] else { return 0.0 };
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()));
        let stat = stat.unwrap_or_default();
        // The program's name, in brackets, may have spaces.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
    }

    /// A command of the program that asks this cluster.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["--endpoints", &self.endpoints().join(",")]).args(arguments);
        command
    }

    /// Runs a command, which must succeed.
    pub(crate) fn run(&self, arguments: &[&str]) {
        let status = self.command(arguments).stdout(Stdio::null()).status();
        let status = status.expect("the command runs");
        assert!(status.success(), "decree {arguments:?}: {status}");
    }

    /// Kills all nodes.
    pub(crate) fn kill_all(&mut self) {
        for child in self.nodes.iter_mut().filter_map(Option::take) {
            let mut child = child;
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_all();
    }
}
