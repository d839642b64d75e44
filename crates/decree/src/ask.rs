//! Asking a running cluster: one connected client, and the command that uses it.

use std::time::Duration;

use client::Client;

use crate::arguments::{AskCommand, Globals};
use crate::failure::Failure;
use crate::{admin, data, inspect, machines, plan, shards};

/// Where the nodes of `decree dev` listen.
const ENDPOINTS_DEFAULT: [&str; 3] = ["127.0.0.1:7101", "127.0.0.1:7102", "127.0.0.1:7103"];
const ENDPOINTS_VARIABLE: &str = "DECREE_ENDPOINTS";
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Whether a command may read standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stdin {
    /// It is the command's.
    Free,
    /// The prompt reads its lines from there.
    Taken,
}

/// A client, and how its user wants to be answered.
#[derive(Clone)]
pub(crate) struct Asker {
    /// The connected client.
    pub(crate) client: Client,
    /// Where it was told to ask.
    pub(crate) endpoints: Vec<String>,
    /// Whether answers are JSON.
    pub(crate) json: bool,
    /// When the user wants to give up, if he said so.
    pub(crate) timeout: Option<Duration>,
    /// Whether a command may read standard input.
    pub(crate) stdin: Stdin,
}

impl Asker {
    /// A client for the options of a command line.
    pub(crate) async fn for_command(globals: &Globals) -> Result<Asker, Failure> {
        let endpoints = endpoints(globals);
        Asker::connect(endpoints, globals.timeout, globals.json, Stdin::Free).await
    }

    /// A client for these nodes.
    pub(crate) async fn connect(
        endpoints: Vec<String>,
        timeout: Option<Duration>,
        json: bool,
        stdin: Stdin,
    ) -> Result<Asker, Failure> {
        for endpoint in &endpoints {
            check_address(endpoint)?;
        }
        let client = Client::connect(endpoints.clone(), options(timeout)).map_err(failure_of)?;
        Ok(Asker { client, endpoints, json, timeout, stdin })
    }

    /// This client, unless a line of the prompt wants something of its own.
    pub(crate) async fn for_line(&self, globals: &Globals) -> Result<Asker, Failure> {
        if globals.endpoints.is_empty() && globals.timeout.is_none() {
            return Ok(Asker { json: globals.json, ..self.clone() });
        }
        let endpoints = match globals.endpoints.is_empty() {
            true => self.endpoints.clone(),
            false => globals.endpoints.clone(),
        };
        Asker::connect(endpoints, globals.timeout, globals.json, self.stdin).await
    }

    /// The options that its client was made with.
    pub(crate) fn options(&self) -> client::Options {
        options(self.timeout)
    }

    /// Runs one command.
    pub(crate) async fn run(&self, command: AskCommand) -> Result<(), Failure> {
        match command {
            AskCommand::Get(arguments) => data::get(self, arguments).await,
            AskCommand::Put(arguments) => data::put(self, arguments).await,
            AskCommand::Puthash(arguments) => data::puthash(self, arguments).await,
            AskCommand::Delete(arguments) => data::delete(self, arguments).await,
            AskCommand::Append(arguments) => data::append(self, arguments).await,
            AskCommand::Cas(arguments) => data::cas(self, arguments).await,
            AskCommand::Init(arguments) => admin::init(self, arguments).await,
            AskCommand::Join(arguments) => plan::join(self, arguments).await,
            AskCommand::Leave(arguments) => plan::leave(self, arguments).await,
            AskCommand::Move(arguments) => plan::move_shards(self, arguments).await,
            AskCommand::Query(arguments) => plan::query(self, arguments).await,
            AskCommand::Status => inspect::status(self).await,
            AskCommand::Shards(arguments) => shards::shards(self, arguments).await,
            AskCommand::Nodes => inspect::nodes(self).await,
            AskCommand::Node(command) => machines::node(self, command).await,
        }
    }
}

fn options(timeout: Option<Duration>) -> client::Options {
    let timeout = timeout.unwrap_or(TIMEOUT_DEFAULT);
    let mut options = client::Options { timeout, ..client::Options::default() };
    // That nobody is there must be known before the time is over for any other reason.
    options.first_contact = options.first_contact.min(timeout / 2);
    options
}

/// The nodes to ask: of the command line, else of the environment, else those of `decree dev`.
fn endpoints(globals: &Globals) -> Vec<String> {
    if !globals.endpoints.is_empty() {
        return globals.endpoints.clone();
    }
    let variable = std::env::var(ENDPOINTS_VARIABLE).unwrap_or_default();
    let named: Vec<String> =
        variable.split(',').map(str::trim).filter(|e| !e.is_empty()).map(str::to_owned).collect();
    if named.is_empty() { ENDPOINTS_DEFAULT.map(str::to_owned).to_vec() } else { named }
}

/// Refuses what cannot be an address before anybody waits for it.
pub(crate) fn check_address(address: &str) -> Result<(), Failure> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
    match port.and_then(|port| port.parse::<u16>().ok()) {
        Some(port) if port != 0 => Ok(()),
        _ => Err(Failure::usage(format!(
            "`{address}` is not an address; write host:port, for example 127.0.0.1:7101"
        ))),
    }
}

/// A client's error as the failure of a command.
pub(crate) fn failure_of(error: client::Error) -> Failure {
    let line = error.to_string();
    match error {
        client::Error::OutcomeUnknown(_) => Failure::outcome_unknown(line),
        client::Error::NobodyReachable(_) => Failure::nobody_reachable(line),
        client::Error::Unavailable(_) => Failure::error("unavailable", line),
        client::Error::Refused(_) => Failure::error("refused", line),
        client::Error::Invalid(_) => Failure::error("invalid", line),
    }
}
