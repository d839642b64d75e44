//! What needs no node.

use tonic::{Code, Status};

use crate::Error;
use crate::options::{Options, endpoint, normalize};

#[test]
fn an_endpoint_has_one_name_however_it_is_written() {
    for text in ["host:7101", " host:7101 ", "http://host:7101", "http://host:7101/"] {
        assert_eq!(normalize(text).as_deref(), Ok("host:7101"), "{text}");
    }
    for text in ["", "host", "host:", "host:0", ":7101", "host:99999", "https://"] {
        assert!(matches!(normalize(text), Err(Error::Invalid(_))), "{text}");
    }
}

#[test]
fn connections_send_small_messages_at_once() {
    assert!(endpoint("127.0.0.1:7101", &Options::default()).unwrap().get_tcp_nodelay());
}

#[test]
fn a_status_without_detail_leaves_a_write_open() {
    let status = Status::new(Code::Unavailable, "a proxy is down.");
    assert_eq!(
        Error::from_status(&status, true),
        Error::OutcomeUnknown("a proxy is down".to_owned())
    );
    assert_eq!(
        Error::from_status(&status, false),
        Error::Unavailable("a proxy is down".to_owned())
    );
    let status = Status::new(Code::OutOfRange, "too large");
    assert_eq!(Error::from_status(&status, true), Error::Invalid("too large".to_owned()));
}

#[test]
fn two_clients_never_share_an_identity() {
    let first = crate::context::draw_identity().unwrap();
    let second = crate::context::draw_identity().unwrap();
    assert_ne!(first, second);
}
