//! `decree dev`: a whole cluster on this machine. The nodes are processes of this very program,
//! started with the same `decree serve` lines that a person would type.
//!
//! Nothing is restarted: a development cluster is where one kills nodes to see what happens. A
//! death is reported with the line that brings the node back.

mod children;
mod formation;
mod layout;
mod prompt;

use std::fs::DirBuilder;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::children::Children;
use self::layout::Layout;
use self::prompt::{Prompt, Typed};
use crate::arguments::{Line, LineCommand, parse_shards};
use crate::ask::{Asker, Stdin};
use crate::failure::{Code, Failure};
use crate::output;

/// The options of `decree dev`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DevArguments {
    /// How many nodes, each a process of its own [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=99))]
    pub(crate) nodes: Option<u16>,
    /// How many replica groups share the shards [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=256))]
    pub(crate) groups: Option<u64>,
    /// The number of shards, fixed for ever [default: 1024]
    #[arg(long, value_name = "N", value_parser = parse_shards)]
    pub(crate) shards: Option<u16>,
    /// Keep the data here, and continue with what is there already [default: a temporary
    /// directory that is removed at the end]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Node n gets the gRPC port base + 100 + n and the peer port base + 300 + n; 0 takes free
    /// ports, which the data directory keeps [default: 7000]
    #[arg(long, value_name = "PORT")]
    pub(crate) base_port: Option<u16>,
    /// No prompt: run until Ctrl-C or SIGTERM
    #[arg(long)]
    pub(crate) no_shell: bool,
}

/// Runs the cluster until its prompt, its input or a signal ends it.
pub(crate) async fn run(arguments: DevArguments) -> Result<Code, Failure> {
    let mut stop = StopSignals::listen()?;
    let home = Home::open(arguments.data_dir.as_deref())?;
    let (layout, notes) = Layout::open(&home.path, &arguments)?;
    for note in notes {
        eprintln!("{note}");
    }
    let mut children = Children::start(&layout, &home.path)?;
    let asker = Asker::connect(layout.endpoints(), None, false, Stdin::Taken).await?;
    let formed = tokio::select! {
        formed = formation::form(&asker.client, &layout) => formed,
        end = children.next_end() => Err(Failure::error("start", format!(
            "the cluster did not start: {end}"
        ))),
        () = stop.received() => Err(Failure::error("stopped", "stopped while starting")),
    };
    let ended = match formed {
        Ok(()) => {
            let mut dev = Dev { asker, children, layout, stop };
            let ended = dev.serve(&arguments, &home).await;
            children = dev.children;
            ended
        }
        Err(failure) => Err(failure),
    };
    children.stop().await;
    home.close();
    ended
}

/// A running development cluster.
struct Dev {
    asker: Asker,
    children: Children,
    layout: Layout,
    stop: StopSignals,
}

impl Dev {
    async fn serve(&mut self, arguments: &DevArguments, home: &Home) -> Result<Code, Failure> {
        let table = self.table(home);
        if arguments.no_shell || prompt::is_interactive() {
            output::print_text(&table)?;
        } else {
            // Standard output belongs to the answers of the lines that are piped in.
            eprint!("{table}");
        }
        if arguments.no_shell { self.wait().await } else { self.run_lines().await }
    }

    /// What runs where.
    fn table(&self, home: &Home) -> String {
        let rows: Vec<[String; 5]> = self
            .children
            .processes()
            .map(|(node, process, directory)| {
                let data = directory.display().to_string();
                let (grpc, peer) = (self.layout.grpc(node), self.layout.peer(node));
                [node.to_string(), process.to_string(), grpc, peer, data]
            })
            .collect();
        let mut text = output::table(["NODE", "PROCESS", "GRPC", "PEERS", "DATA"], &rows);
        if home.temporary {
            text.push_str("The data is temporary and goes with this cluster (see --data-dir).\n");
        }
        text.push_str(&format!(
            "From another terminal: decree --endpoints {} status\n",
            self.layout.endpoints().join(",")
        ));
        text
    }

    async fn wait(&mut self) -> Result<Code, Failure> {
        loop {
            tokio::select! {
                end = self.children.next_end() => eprintln!("{end}"),
                () = self.stop.received() => return Ok(Code::Done),
                () = tokio::time::sleep(LIFE_CHECK), if !self.children.any_alive() => {
                    self.check_life().await?;
                }
            }
        }
    }

    async fn run_lines(&mut self) -> Result<Code, Failure> {
        let mut prompt = Prompt::open();
        if prompt.is_interactive() {
            println!("Type `help` for the commands, `exit` or Ctrl-D to stop the cluster.");
        }
        let mut code = Code::Done;
        loop {
            let typed = tokio::select! {
                typed = prompt.next() => typed,
                end = self.children.next_end() => {
                    prompt.notice(end);
                    continue;
                }
                () = self.stop.received() => return Ok(code),
                () = tokio::time::sleep(LIFE_CHECK), if !self.children.any_alive() => {
                    self.check_life().await?;
                    continue;
                }
            };
            let Typed::Line(line) = typed else { return Ok(code) };
            let ran = tokio::select! {
                ran = run_line(&self.asker, &line) => ran,
                () = self.stop.received() => return Ok(code),
            };
            match ran {
                Ok(Next::Line) => {}
                Ok(Next::Exit) => return Ok(code),
                // A person has seen the failure; a script is told by the exit code.
                Err(failure) if code == Code::Done && !prompt.is_interactive() => {
                    code = failure;
                }
                Err(_) => {}
            }
        }
    }

    /// All processes of this cluster have ended: unless others stand in for them, so does it.
    async fn check_life(&self) -> Result<(), Failure> {
        for endpoint in self.layout.endpoints() {
            if tokio::net::TcpStream::connect(&endpoint).await.is_ok() {
                return Ok(());
            }
        }
        Err(Failure::error(
            "dead",
            "all nodes are dead; a new `decree dev` on the same --data-dir \
             continues with their data",
        ))
    }
}

/// What follows a line.
enum Next {
    Line,
    Exit,
}

/// Runs one line of the prompt; what fails is reported here, and its exit code returned.
async fn run_line(asker: &Asker, line: &[u8]) -> Result<Next, Code> {
    let report = |failure: Failure, json: bool| {
        failure.report(json);
        failure.code()
    };
    let Some(words) = prompt::words(line) else {
        return Err(report(Failure::usage("a quotation is not closed"), false));
    };
    if words.is_empty() {
        return Ok(Next::Line);
    }
    let line = match Line::try_parse_from(words) {
        Ok(line) => line,
        Err(error) => {
            // Nothing is left to tell if the terminal does not take the message.
            let _ = error.print();
            return if error.use_stderr() { Err(Code::Usage) } else { Ok(Next::Line) };
        }
    };
    let LineCommand::Ask(command) = line.command else { return Ok(Next::Exit) };
    let json = line.globals.json;
    let asked = match asker.for_line(&line.globals).await {
        Ok(asker) => asker.run(command).await,
        Err(failure) => Err(failure),
    };
    asked.map(|()| Next::Line).map_err(|failure| report(failure, json))
}

/// The signals that end a program in good order.
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// From now on these signals do not kill the process.
    pub(crate) fn listen() -> Result<StopSignals, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| {
                Failure::error("signals", format!("cannot listen for signals: {error}"))
            })
        };
        Ok(StopSignals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for one of them.
    pub(crate) async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The data directory of the whole cluster.
struct Home {
    path: PathBuf,
    temporary: bool,
}

impl Home {
    fn open(chosen: Option<&Path>) -> Result<Home, Failure> {
        let failed =
            |error| Failure::error("data_directory", format!("no data directory: {error}"));
        let temporary = chosen.is_none();
        let path = match chosen {
            Some(path) => {
                std::fs::create_dir_all(path).map_err(failed)?;
                path.to_owned()
            }
            None => {
                // Never one that is there: it would be continued, and removed at the end.
                let unique = RandomState::new().build_hasher().finish();
                let path = std::env::temp_dir().join(format!("decree-dev-{unique:016x}"));
                DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
                path
            }
        };
        // The lines that are printed must hold from any working directory.
        let path = path.canonicalize().map_err(failed)?;
        Ok(Home { path, temporary })
    }

    fn close(self) {
        if self.temporary
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            eprintln!("note: cannot remove {}: {error}", self.path.display());
        }
    }
}

const LIFE_CHECK: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
Examples:
  decree dev                                       three nodes, two groups, and a prompt
  printf 'put a x\\nget a\\n' | decree dev           runs the lines and stops
  decree dev --no-shell --data-dir ./data          until Ctrl-C; the data stays
  decree dev --nodes 5 --groups 4 --base-port 0    more of it, on free ports

Kill nodes as you like: `dev` restarts none, and prints the `decree serve` line that brings one
back. Its exit code is that of the first line that failed, or 1 when all nodes are dead.";
