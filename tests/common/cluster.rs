//! A Redis Cluster: three masters, and optionally a replica of the first.

use std::{mem, time::Instant};

use super::{Authority, Redis, eventually, free_port, redis::wait_for_replication};

/// The first and last slot of each master.
const SLOTS: [(u16, u16); 3] = [(0, 5460), (5461, 10922), (10923, 16383)];

pub struct Cluster {
    pub masters: Vec<Redis>,
    /// A replica of the first master.
    replica: Option<Redis>,
}

impl Cluster {
    /// Starts three masters without replicas.
    pub async fn start() -> Self {
        // A long timeout: a node on a busy machine must not be declared failed.
        Self::start_of(3, 15_000, None).await
    }

    /// Starts three masters and a replica of the first. It takes over after a shorter timeout.
    pub async fn start_with_replica() -> Self {
        Self::start_of(4, 5_000, None).await
    }

    /// Starts three masters that accept only TLS, with certificates for their address.
    pub async fn start_with_tls(authority: &Authority) -> Self {
        Self::start_of(3, 15_000, Some(authority)).await
    }

    async fn start_of(nodes: usize, node_timeout: u32, tls: Option<&Authority>) -> Self {
        let mut nodes: Vec<_> = (0..nodes).map(|_| node(node_timeout, tls)).collect();
        for (epoch, node) in nodes.iter().enumerate() {
            if let Some((first, last)) = SLOTS.get(epoch) {
                node.expect_ok(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            }
            node.expect_ok(&["CLUSTER", "SET-CONFIG-EPOCH", &(epoch + 1).to_string()]);
            let bus = node.cli(&["CONFIG", "GET", "cluster-port"]);
            let (port, bus) = (node.port.to_string(), bus.lines().nth(1).unwrap().to_owned());
            nodes[0].expect_ok(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
        let known = nodes.len().to_string();
        for node in &nodes {
            eventually("all nodes know each other", async || {
                let known = format!("cluster_known_nodes:{known}");
                let info = node.cli(&["CLUSTER", "INFO"]);
                let is_whole = info.contains("cluster_state:ok") && info.contains(&known);
                // A node's id changes at the end of the handshake.
                let shaking = node.cli(&["CLUSTER", "NODES"]).contains("handshake");
                (is_whole && !shaking).then_some(())
            })
            .await;
        }
        let replica = (nodes.len() > SLOTS.len()).then(|| nodes.pop().unwrap());
        if let Some(replica) = &replica {
            let master = id(&nodes[0]);
            replica.expect_ok(&["CLUSTER", "REPLICATE", &master]);
            wait_for_replication(&nodes[0], replica).await;
            for node in &nodes {
                eventually("all nodes know the replica", async || {
                    let replicas = node.cli(&["CLUSTER", "REPLICAS", &master]);
                    replicas.contains("connected").then_some(())
                })
                .await;
            }
        }
        Self { masters: nodes, replica }
    }

    pub fn url(&self) -> String {
        let nodes = self.masters[1..].iter().map(|node| format!("node=127.0.0.1:{}", node.port));
        let nodes: Vec<_> = nodes.collect();
        format!("redis-cluster://127.0.0.1:{}?{}", self.masters[0].port, nodes.join("&"))
    }

    /// Names only the first master; the service must discover the others.
    pub fn short_url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{}", self.masters[0].port)
    }

    /// The session keys on each master.
    pub fn keys(&self) -> Vec<Vec<String>> {
        self.masters.iter().map(Redis::keys).collect()
    }

    /// The slot of this key, and the index of the master that owned it at the start.
    pub fn place(&self, key: &str) -> (u16, usize) {
        let slot = self.masters[0].cli(&["CLUSTER", "KEYSLOT", key]).parse().unwrap();
        let master = SLOTS.iter().position(|(_, last)| slot <= *last);
        (slot, master.unwrap())
    }

    /// Kills the first master, waits until its replica is promoted, and returns the time of that.
    pub async fn kill_first_master(&mut self) -> Instant {
        let replica = self.replica.take().unwrap();
        drop(mem::replace(&mut self.masters[0], replica));
        let promoted = &self.masters[0];
        eventually("the replica is promoted", async || (promoted.role() == "master").then(Instant::now)).await
    }
}

fn node(timeout: u32, tls: Option<&Authority>) -> Redis {
    let mut node = Redis::start_with_port(|port| {
        let options = [
            ["--cluster-enabled", "yes"],
            ["--cluster-node-timeout", &timeout.to_string()],
            // The default, 10,000 above the client port, may exceed 65,535.
            ["--cluster-port", &free_port().to_string()],
            // Start the replication without waiting for more replicas.
            ["--repl-diskless-sync-delay", "0"],
            ["--tls-cluster", if tls.is_some() { "yes" } else { "no" }],
        ];
        let options = options.concat().into_iter().map(str::to_owned);
        options.chain(tls.into_iter().flat_map(|authority| authority.server_options(port, "127.0.0.1"))).collect()
    });
    node.cli_options = tls.map(Authority::cli_options).unwrap_or_default();
    node
}

fn id(node: &Redis) -> String {
    node.cli(&["CLUSTER", "MYID"])
}

/// Moves a slot from one master to another in the steps of `redis-cli --cluster reshard`.
pub struct Migration<'a> {
    cluster: &'a Cluster,
    slot: String,
    /// Indices into `cluster.masters`.
    from: usize,
    to: usize,
}

impl<'a> Migration<'a> {
    /// Starts the migration: the old master redirects requests for keys that it no longer has.
    pub fn begin(cluster: &'a Cluster, slot: u16, from: usize, to: usize) -> Self {
        let slot = slot.to_string();
        let (old, new) = (&cluster.masters[from], &cluster.masters[to]);
        new.expect_ok(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(old)]);
        old.expect_ok(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(new)]);
        Self { cluster, slot, from, to }
    }

    /// Moves the slot's keys and returns their number.
    pub fn move_keys(&self) -> usize {
        let old = &self.cluster.masters[self.from];
        let port = self.cluster.masters[self.to].port.to_string();
        let keys = old.cli(&["CLUSTER", "GETKEYSINSLOT", &self.slot, "1000"]);
        let keys: Vec<_> = keys.lines().collect();
        let command = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        old.expect_ok(&[&command[..], &keys].concat());
        keys.len()
    }

    /// Assigns the slot to the new master, on all masters, the new one first.
    pub fn end(self) {
        let masters = &self.cluster.masters;
        let new = id(&masters[self.to]);
        masters[self.to].expect_ok(&["CLUSTER", "SETSLOT", &self.slot, "NODE", &new]);
        for master in masters {
            master.expect_ok(&["CLUSTER", "SETSLOT", &self.slot, "NODE", &new]);
        }
    }
}
