//! The load of `decree bench` against etcd, so that both are measured by the same loop: a closed
//! loop of clients in one thread, spread over the members, one gRPC call an operation (etcd has
//! no other way to put). Only the two messages it needs are declared here.
//!
//! `cargo run --release --example etcd_load -- put 64 10 256 127.0.0.1:2379,127.0.0.1:22379`

use std::cell::RefCell;
use std::time::{Duration, Instant};

use base::Random;
use hdrhistogram::Histogram;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

/// Both replies are counted, not read.
#[derive(Clone, PartialEq, prost::Message)]
struct AnyReply {}

/// Keys are drawn from so many.
const KEYS: u64 = 10_000;
/// Connections to each member.
const CONNECTIONS: usize = 4;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [op, clients, seconds, value_size, endpoints] = &arguments[..] else {
        eprintln!("usage: etcd_load put|get CLIENTS SECONDS VALUE_BYTES HOST:PORT,...");
        std::process::exit(2);
    };
    let number = |text: &String| text.parse::<u64>().expect("a number");
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor");
    runtime.block_on(run(
        op == "get",
        number(clients),
        Duration::from_secs(number(seconds)),
        number(value_size) as usize,
        endpoints,
    ));
}

async fn run(get: bool, clients: u64, time: Duration, value_size: usize, endpoints: &str) {
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        for endpoint in endpoints.split(',') {
            let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address");
            channels.push(endpoint.tcp_nodelay(true).connect().await.expect("etcd answers"));
        }
    }
    let tally = RefCell::new(Histogram::<u64>::new(3).expect("a histogram"));
    let begin = Instant::now() + Duration::from_secs(1);
    let end = begin + time;
    let value = vec![b'v'; value_size];
    let one = |client: u64| {
        let (tally, channels, value) = (&tally, &channels, &value);
        async move {
            let mut random = Random::new(client + 1);
            let channel: Channel = channels[client as usize % channels.len()].clone();
            let mut grpc = tonic::client::Grpc::new(channel);
            while Instant::now() < end {
                let key = format!("key-{:08}", random.below(KEYS)).into_bytes();
                let start = Instant::now();
                grpc.ready().await.expect("ready");
                if get {
                    let path = PathAndQuery::from_static("/etcdserverpb.KV/Range");
                    let codec = ProstCodec::<RangeRequest, AnyReply>::default();
                    let request = tonic::Request::new(RangeRequest { key });
                    grpc.unary(request, path, codec).await.expect("an answer");
                } else {
                    let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
                    let codec = ProstCodec::<PutRequest, AnyReply>::default();
                    let request = tonic::Request::new(PutRequest { key, value: value.clone() });
                    grpc.unary(request, path, codec).await.expect("an answer");
                }
                if start >= begin {
                    let micros = start.elapsed().as_micros() as u64;
                    tally.borrow_mut().record(micros.max(1)).expect("in range");
                }
            }
        }
    };
    futures::future::join_all((0..clients).map(one)).await;
    let tally = tally.into_inner();
    println!(
        "etcd {}: {:.0}/s, p50 {} us, p99 {} us, p99.9 {} us",
        if get { "get" } else { "put" },
        tally.len() as f64 / time.as_secs_f64(),
        tally.value_at_quantile(0.5),
        tally.value_at_quantile(0.99),
        tally.value_at_quantile(0.999)
    );
}
