//! The node processes of a development cluster. They end when the pipe to this process closes,
//! however it ends.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{ChildStdin, Command};
use tokio::sync::{mpsc, oneshot};

use super::layout::{HOST, Layout};
use crate::failure::Failure;

/// The processes that this `dev` started. It restarts none of them.
pub(crate) struct Children {
    nodes: Vec<Child>,
    ends: mpsc::UnboundedReceiver<(u64, std::io::Result<ExitStatus>)>,
}

struct Child {
    node: u64,
    process: u32,
    directory: PathBuf,
    serve_line: String,
    /// Closed to let the node end in good order.
    pipe: Option<ChildStdin>,
    /// Used when it does not.
    kill: Option<oneshot::Sender<()>>,
    alive: bool,
}

impl Children {
    /// Starts a process for each node.
    pub(crate) fn start(layout: &Layout, directory: &Path) -> Result<Children, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::error("start", format!("cannot find my program: {error}")))?;
        let (ended, ends) = mpsc::unbounded_channel();
        let mut children = Children { nodes: Vec::new(), ends };
        for node in layout.nodes() {
            let home = layout.data_directory(directory, node);
            let arguments = serve_arguments(layout, node, &home);
            let child = Child::spawn(node, &program, &arguments, home, ended.clone())?;
            children.nodes.push(child);
        }
        Ok(children)
    }

    /// Waits until a process ends, and says so; the sentence holds the line that brings the node
    /// back.
    pub(crate) async fn next_end(&mut self) -> String {
        let Some((node, status)) = self.ends.recv().await else {
            // All have ended and were reported.
            return std::future::pending().await;
        };
        let how = match status {
            Ok(status) => status.to_string(),
            Err(error) => format!("state unknown: {error}"),
        };
        let child = self.nodes.iter_mut().find(|child| child.node == node);
        let child = child.expect("only started nodes end");
        child.alive = false;
        let mut text = format!("node {node} (process {}) ended: {how}\n", child.process);
        if let Some(last) = last_line(&child.directory.join(LOG_FILE)) {
            text.push_str(&format!("  its log ends with: {last}\n"));
        }
        text.push_str(&format!("  this brings it back: {}", child.serve_line));
        text
    }

    /// Whether any process that was started here is alive.
    pub(crate) fn any_alive(&self) -> bool {
        self.nodes.iter().any(|child| child.alive)
    }

    /// The process id of each node and its data directory.
    pub(crate) fn processes(&self) -> impl Iterator<Item = (u64, u32, &Path)> {
        self.nodes.iter().map(|child| (child.node, child.process, child.directory.as_path()))
    }

    /// Ends the processes that were started here, in good order where they let themselves.
    pub(crate) async fn stop(mut self) {
        for child in &mut self.nodes {
            child.pipe = None;
        }
        if tokio::time::timeout(STOP_TIME_MAX, self.all_ended()).await.is_err() {
            for child in self.nodes.iter_mut().filter(|child| child.alive) {
                eprintln!("node {} does not stop; killing process {}", child.node, child.process);
                if let Some(kill) = child.kill.take() {
                    // The receiver is gone only if the process has ended.
                    let _ = kill.send(());
                }
            }
            self.all_ended().await;
        }
    }

    async fn all_ended(&mut self) {
        while self.any_alive() {
            let Some((node, _)) = self.ends.recv().await else { return };
            for child in self.nodes.iter_mut().filter(|child| child.node == node) {
                child.alive = false;
            }
        }
    }
}

impl Child {
    fn spawn(
        node: u64,
        program: &Path,
        arguments: &[OsString],
        directory: PathBuf,
        ended: mpsc::UnboundedSender<(u64, std::io::Result<ExitStatus>)>,
    ) -> Result<Child, Failure> {
        let failed = |what: &str, error: std::io::Error| {
            Failure::error("start", format!("cannot {what} of node {node}: {error}"))
        };
        fs::create_dir_all(&directory)
            .map_err(|error| failed("create the data directory", error))?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(directory.join(LOG_FILE))
            .map_err(|error| failed("write the log file", error))?;
        let out = log.try_clone().map_err(|error| failed("write the log file", error))?;
        // A process group of its own keeps a Ctrl-C on the terminal from the nodes: they are
        // stopped in order, through their pipes.
        let mut process = Command::new(program)
            .args(arguments)
            .arg("--parent-pipe")
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(log)
            .process_group(0)
            .spawn()
            .map_err(|error| failed("start the process", error))?;
        let pipe = process.stdin.take();
        let id = process.id().unwrap_or_default();
        let (kill, killed) = oneshot::channel();
        tokio::spawn(async move {
            let status = tokio::select! {
                status = process.wait() => status,
                Ok(()) = killed => match process.kill().await {
                    Ok(()) => process.wait().await,
                    Err(error) => Err(error),
                },
            };
            // The receiver is gone only when the whole program ends.
            let _ = ended.send((node, status));
        });
        let serve_line = quoted(program, arguments);
        Ok(Child { node, process: id, directory, serve_line, pipe, kill: Some(kill), alive: true })
    }
}

fn serve_arguments(layout: &Layout, node: u64, home: &Path) -> Vec<OsString> {
    let ports = layout.ports_of(node);
    vec![
        "serve".into(),
        "--data-dir".into(),
        home.into(),
        "--node".into(),
        node.to_string().into(),
        "--masters".into(),
        layout.masters().join(",").into(),
        "--host".into(),
        HOST.into(),
        "--grpc-port".into(),
        ports.grpc.to_string().into(),
        "--peer-port".into(),
        ports.peer.to_string().into(),
    ]
}

/// A command line as a shell takes it.
fn quoted(program: &Path, arguments: &[OsString]) -> String {
    let words = std::iter::once(program.as_os_str()).chain(arguments.iter().map(AsRef::as_ref));
    let words: Vec<String> = words
        .map(|word| {
            let text = word.to_string_lossy();
            if text.chars().all(is_plain) {
                return text.into_owned();
            }
            shlex::try_quote(&text).map(|quoted| quoted.into_owned()).unwrap_or_default()
        })
        .collect();
    words.join(" ")
}

/// Whether every shell takes the character as it is.
fn is_plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "-_./:,".contains(letter)
}

fn last_line(path: &Path) -> Option<String> {
    let content = fs::read(path).ok()?;
    let tail = &content[content.len().saturating_sub(LOG_TAIL_BYTES)..];
    let text = String::from_utf8_lossy(tail);
    text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
}

const LOG_FILE: &str = "node.log";
const LOG_TAIL_BYTES: usize = 4_096;
const STOP_TIME_MAX: Duration = Duration::from_secs(10);
