//! What the doors know of the cluster besides requests: where the nodes are, and whether this one
//! can serve.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use base::{Micros, NodeId};
use client::convert::AddressBook;
use router::{Answer, Body, ClusterAnswer, ClusterOp, Header, NodeStatus, Reply, Request, Routes};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::ask::Ask;
use crate::services::SERVICES;

/// How often the node is asked how it is.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
const LOOK_TIMEOUT: Micros = Micros::from_secs(1);

/// The gRPC addresses of the nodes, as the node itself knows them.
#[derive(Debug, Default)]
pub(crate) struct Book {
    nodes: RwLock<BTreeMap<NodeId, String>>,
}

impl AddressBook for Book {
    fn grpc(&self, node: NodeId) -> String {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&node).cloned().unwrap_or_default()
    }
}

impl Book {
    fn take_routes(&self, routes: &Routes) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        *nodes = routes
            .nodes
            .iter()
            .map(|(node, info)| (*node, info.grpc.as_str().to_owned()))
            .collect();
    }
}

/// Keeps the book and the health service up to date, for ever.
pub(crate) async fn watch<A: Ask>(ask: A, book: &Book, health: HealthReporter) {
    let mut routes_version = None;
    let mut serving = None;
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let Some(status) = status(&ask).await else { continue };
        if serving != Some(status.not_ready.is_none()) {
            serving = Some(status.not_ready.is_none());
            set_health(&health, &status).await;
        }
        if routes_version != Some(status.routes_version)
            && let Some(routes) = routes(&ask).await
        {
            book.take_routes(&routes);
            routes_version = Some(routes.version);
        }
    }
}

async fn set_health(health: &HealthReporter, status: &NodeStatus) {
    let serving = match &status.not_ready {
        None => ServingStatus::Serving,
        Some(_) => ServingStatus::NotServing,
    };
    match &status.not_ready {
        None => tracing::info!("ready to serve"),
        Some(reason) => tracing::info!("not ready to serve: {reason}"),
    }
    for service in SERVICES {
        health.set_service_status(service, serving).await;
    }
}

async fn status<A: Ask>(ask: &A) -> Option<NodeStatus> {
    let Answer::Cluster(ClusterAnswer::Status(status)) = look(ask, ClusterOp::Status).await? else {
        return None;
    };
    Some(*status)
}

async fn routes<A: Ask>(ask: &A) -> Option<Routes> {
    let Answer::Cluster(ClusterAnswer::Routes(routes)) = look(ask, ClusterOp::Routes).await? else {
        return None;
    };
    Some(*routes)
}

async fn look<A: Ask>(ask: &A, op: ClusterOp) -> Option<Answer> {
    let header = Header { timeout: LOOK_TIMEOUT, ..Header::default() };
    let Reply { body, .. } = ask.call(Request { header, body: Body::Cluster(op) }).await.ok()?;
    body.ok()
}
