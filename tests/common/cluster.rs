//! A Redis Cluster: three masters, and a replica that can take the place of one.

use std::time::Instant;

use super::{Redis, eventually, free_port, redis::in_step};

/// The slots of each master, first and last.
const SLOTS: [(u16, u16); 3] = [(0, 5460), (5461, 10922), (10923, 16383)];

pub struct Cluster {
    pub masters: Vec<Redis>,
    /// Of the first master.
    replica: Option<Redis>,
}

impl Cluster {
    /// Three masters, and none takes the place of another.
    pub async fn start() -> Self {
        // A node that is busy for a while must not be taken for dead.
        Self::start_of(3, 15_000).await
    }

    /// Three masters and a replica of the first, which takes its place soon.
    pub async fn start_with_replica() -> Self {
        Self::start_of(4, 1_000).await
    }

    async fn start_of(nodes: usize, node_timeout: u32) -> Self {
        let mut nodes: Vec<_> = (0..nodes).map(|_| node(node_timeout)).collect();
        for (epoch, node) in nodes.iter().enumerate() {
            if let Some((first, last)) = SLOTS.get(epoch) {
                node.order(&[
                    "CLUSTER",
                    "ADDSLOTSRANGE",
                    &first.to_string(),
                    &last.to_string(),
                ]);
            }
            node.order(&["CLUSTER", "SET-CONFIG-EPOCH", &(epoch + 1).to_string()]);
            let bus = node.cli(&["CONFIG", "GET", "cluster-port"]);
            let (port, bus) = (
                node.port.to_string(),
                bus.lines().nth(1).unwrap().to_owned(),
            );
            nodes[0].order(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
        let known = nodes.len().to_string();
        for node in &nodes {
            eventually("nodes that know each other", async || {
                let known = format!("cluster_known_nodes:{known}");
                let info = node.cli(&["CLUSTER", "INFO"]);
                let is_whole = info.contains("cluster_state:ok") && info.contains(&known);
                // A node that has not shaken hands yet has a name that will not stay.
                let shaking = node.cli(&["CLUSTER", "NODES"]).contains("handshake");
                (is_whole && !shaking).then_some(())
            })
            .await;
        }
        let replica = (nodes.len() > SLOTS.len()).then(|| nodes.pop().unwrap());
        if let Some(replica) = &replica {
            let master = id(&nodes[0]);
            replica.order(&["CLUSTER", "REPLICATE", &master]);
            in_step(&nodes[0], replica).await;
            for node in &nodes {
                eventually("nodes that know the replica", async || {
                    let replicas = node.cli(&["CLUSTER", "REPLICAS", &master]);
                    replicas.contains("connected").then_some(())
                })
                .await;
            }
        }
        Self {
            masters: nodes,
            replica,
        }
    }

    pub fn url(&self) -> String {
        let nodes = self.masters[1..]
            .iter()
            .map(|node| format!("node=127.0.0.1:{}", node.port));
        let nodes: Vec<_> = nodes.collect();
        format!(
            "redis-cluster://127.0.0.1:{}?{}",
            self.masters[0].port,
            nodes.join("&")
        )
    }

    /// It names the first master alone; the others are to be found out.
    pub fn short_url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{}", self.masters[0].port)
    }

    /// Keys that stand on each master.
    pub fn keys(&self) -> Vec<Vec<String>> {
        self.masters.iter().map(Redis::keys).collect()
    }

    /// The slot of this key, and the index of the master whose it was at the start.
    pub fn place(&self, key: &str) -> (u16, usize) {
        let slot = self.masters[0]
            .cli(&["CLUSTER", "KEYSLOT", key])
            .parse()
            .unwrap();
        let master = SLOTS.iter().position(|(_, last)| slot <= *last);
        (slot, master.unwrap())
    }

    /// Kills the first master and waits until its replica has taken its place. Gives the moment.
    pub async fn kill_first_master(&mut self) -> Instant {
        let replica = self.replica.take().unwrap();
        let _killed = std::mem::replace(&mut self.masters[0], replica);
        drop(_killed);
        let promoted = &self.masters[0];
        eventually("the replica's promotion", async || {
            (promoted.role() == "master").then(Instant::now)
        })
        .await
    }
}

fn node(timeout: u32) -> Redis {
    Redis::start_where(|_| {
        let options = [
            ["--cluster-enabled", "yes"],
            ["--cluster-node-timeout", &timeout.to_string()],
            // Its usual place is 10,000 above the other, where there may be no port.
            ["--cluster-port", &free_port().to_string()],
            // The replica need not wait for a second client before it is sent the data.
            ["--repl-diskless-sync-delay", "0"],
        ];
        options.concat().into_iter().map(str::to_owned).collect()
    })
}

fn id(node: &Redis) -> String {
    node.cli(&["CLUSTER", "MYID"])
}

/// A slot's move from one master to another, step by step as `redis-cli --cluster reshard` does it.
pub struct Migration<'a> {
    cluster: &'a Cluster,
    slot: String,
    /// Indices of masters.
    from: usize,
    to: usize,
}

impl<'a> Migration<'a> {
    /// From now on, keys that the old master does not have are asked for at the new one.
    pub fn begin(cluster: &'a Cluster, slot: u16, from: usize, to: usize) -> Self {
        let slot = slot.to_string();
        let (old, new) = (&cluster.masters[from], &cluster.masters[to]);
        new.order(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(old)]);
        old.order(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(new)]);
        Self {
            cluster,
            slot,
            from,
            to,
        }
    }

    /// Moves the slot's keys. Gives how many.
    pub fn move_keys(&self) -> usize {
        let old = &self.cluster.masters[self.from];
        let port = self.cluster.masters[self.to].port.to_string();
        let keys = old.cli(&["CLUSTER", "GETKEYSINSLOT", &self.slot, "1000"]);
        let keys: Vec<_> = keys.lines().collect();
        let command = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
        old.order(&[&command[..], &keys].concat());
        keys.len()
    }

    /// Has all masters know whose the slot is, the new one first.
    pub fn end(self) {
        let masters = &self.cluster.masters;
        let new = id(&masters[self.to]);
        masters[self.to].order(&["CLUSTER", "SETSLOT", &self.slot, "NODE", &new]);
        for master in masters {
            master.order(&["CLUSTER", "SETSLOT", &self.slot, "NODE", &new]);
        }
    }
}
