//! Settings of a client, and how its connections are made.

use std::time::Duration;

use base::Micros;
use router::Consistency;
use tonic::transport::Endpoint;

use crate::error::{Error, innermost};

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long an operation may take, retries included.
    pub timeout: Duration,
    /// How long an operation waits for the first connection of all before it ends with
    /// [`Error::NobodyReachable`]. Once a node was reached, only `timeout` counts.
    pub first_contact: Duration,
    /// An attempt without an answer for so long is followed by another one, elsewhere.
    pub attempt_timeout: Duration,
    /// How long one connection may take to be made.
    pub connect_timeout: Duration,
    /// What reads of keys may see.
    pub reads: Consistency,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            timeout: Duration::from_secs(10),
            first_contact: Duration::from_secs(1),
            attempt_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            reads: Consistency::Linearizable,
        }
    }
}

/// An idle connection is probed so often, so that a node that vanished without a word is noticed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// A probe without an answer for so long ends the connection.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// An endpoint as it is named in all messages: `host:port`.
pub(crate) fn normalize(endpoint: &str) -> Result<String, Error> {
    let address = endpoint.trim().trim_end_matches('/');
    let address = address.strip_prefix("http://").unwrap_or(address);
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    if port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Ok(address.to_owned());
    }
    Err(Error::Invalid(format!("{endpoint:?} is not an endpoint, which is written host:port")))
}

/// A connection to be made to `host:port`. Small messages leave at once: with Nagle's algorithm
/// and delayed acknowledgements each would wait for 40 milliseconds.
pub(crate) fn endpoint(address: &str, options: &Options) -> Result<Endpoint, Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Error::Invalid(format!("{address:?}: {}", innermost(&error))))?;
    Ok(endpoint
        .tcp_nodelay(true)
        .connect_timeout(options.connect_timeout)
        .initial_stream_window_size(api::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(api::CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// A span as the routing machine counts it.
pub(crate) fn micros(duration: Duration) -> Micros {
    Micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}
