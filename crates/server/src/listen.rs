//! Which addresses a node may listen on.

use std::net::IpAddr;

/// Why an address is not listened on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// Everybody on the network could read and change everything.
    #[error(
        "{host} can be reached from other machines, and this version has neither encryption nor \
         passwords: listen on 127.0.0.1, or say --insecure if the network is trusted"
    )]
    NotLocal {
        /// The host as it was given.
        host: String,
    },
}

/// Refuses to listen where other machines reach the node, unless told that this is meant.
pub fn check_listen(host: &str, insecure: bool) -> Result<(), ListenError> {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    // A name other than this one may stand for any address, now or later.
    let local = address.map_or(host == "localhost", |address| address.is_loopback());
    if local || insecure {
        return Ok(());
    }
    Err(ListenError::NotLocal { host: host.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_others_reach_needs_to_be_meant() {
        for host in ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"] {
            assert_eq!(check_listen(host, false), Ok(()), "{host}");
        }
        for host in ["0.0.0.0", "::", "192.168.1.7", "node1.example.com"] {
            let error = check_listen(host, false).unwrap_err().to_string();
            assert!(error.contains(host) && error.contains("--insecure"), "{error}");
            assert_eq!(check_listen(host, true), Ok(()), "{host}");
        }
    }
}
