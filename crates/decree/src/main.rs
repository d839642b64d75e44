//! The one program of the project: it runs nodes, and it asks them.

mod admin;
mod arguments;
mod ask;
mod bench;
mod data;
mod dev;
mod failure;
mod files;
mod inspect;
mod machines;
mod memory;
mod output;
mod plan;
mod ports;
mod serve;
mod shards;
mod view;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use self::arguments::{Cli, TopCommand};
use self::ask::Asker;
use self::failure::{Code, Failure};

/// The system's allocator keeps and fragments what a database of this kind frees in bursts.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    memory::keep_freed();
    let cli = Cli::parse();
    let json = cli.globals.json;
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::error("start", format!("cannot start: {error}")))
        .and_then(|runtime| runtime.block_on(run(cli)));
    match ended {
        Ok(code) => code.into(),
        Err(failure) => {
            failure.report(json);
            failure.code().into()
        }
    }
}

async fn run(cli: Cli) -> Result<Code, Failure> {
    let done = |()| Code::Done;
    match cli.command {
        TopCommand::Dev(arguments) => dev::run(arguments).await,
        TopCommand::Serve(arguments) => serve::run(arguments).await.map(done),
        TopCommand::Ask(command) => {
            Asker::for_command(&cli.globals).await?.run(command).await.map(done)
        }
        TopCommand::Bench(arguments) => {
            let asker = Asker::for_command(&cli.globals).await?;
            bench::run(&asker, arguments).await.map(done)
        }
    }
}
