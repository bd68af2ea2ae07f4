//! A network of its own: one namespace for each node, joined by a bridge in one more, where the
//! test stands. Nothing of it shows outside.

use std::{
    fs::File,
    os::fd::AsFd,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{process::has, scratch::at_exit};

/// The first three numbers of every address. Nothing else is reachable from inside.
const NET: &str = "10.77.0";
/// Of nobody.
const NOWHERE: &str = "02:00:00:00:ff:ff";

/// A network; removed when dropped.
#[derive(Debug)]
pub struct Network {
    hub: String,
    nodes: Vec<String>,
}

/// Runs `ip`.
fn ip(args: &str) -> Result<(), String> {
    let output = Command::new("ip")
        .args(args.split_ascii_whitespace())
        .output()
        .map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {args}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn must(args: &str) {
    ip(args).unwrap_or_else(|error| panic!("{error}"));
}

fn mac(id: u64) -> String {
    format!("02:00:00:00:00:{id:02x}")
}

impl Network {
    /// Makes one for nodes `1..=count`.
    ///
    /// # Errors
    /// Where this machine does not allow it, with the reason.
    pub fn new(count: u64) -> Result<Network, String> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        if !has("ip") {
            return Err("iproute2 is not installed".to_owned());
        }
        let prefix = format!("hw{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let hub = format!("{prefix}-hub");
        at_exit(&format!("ip netns del {hub}"));
        ip(&format!("netns add {hub}"))?;
        let mut network = Network { hub, nodes: Vec::new() };
        let hub = network.hub.clone();
        ip(&format!("-n {hub} link add hub type bridge"))?;
        ip(&format!("-n {hub} link set lo up"))?;
        ip(&format!("-n {hub} addr add {NET}.254/24 dev hub"))?;
        ip(&format!("-n {hub} link set hub up"))?;
        for id in 1..=count {
            let name = format!("{prefix}-{id}");
            at_exit(&format!("ip netns del {name}"));
            ip(&format!("netns add {name}"))?;
            network.nodes.push(name.clone());
            ip(&format!("-n {hub} link add n{id} type veth peer name eth0 netns {name}"))?;
            ip(&format!("-n {hub} link set n{id} master hub up"))?;
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {name} link set eth0 address {}", mac(id)))?;
            ip(&format!("-n {name} addr add {NET}.{id}/24 dev eth0"))?;
            ip(&format!("-n {name} link set eth0 up"))?;
        }
        network.heal();
        Ok(network)
    }

    /// Where a node is.
    #[must_use]
    pub fn address(&self, id: u64) -> String {
        format!("{NET}.{id}")
    }

    /// What runs a program where a node is.
    #[must_use]
    pub fn wrapper(&self, id: u64) -> [String; 4] {
        let name = self.name(id);
        ["ip", "netns", "exec", name].map(str::to_owned)
    }

    fn name(&self, id: u64) -> &str {
        &self.nodes[id as usize - 1]
    }

    /// Moves the calling thread, and those it will spawn, to where every node is reachable from,
    /// until what it returns is dropped.
    ///
    /// # Panics
    /// Where that is not allowed.
    #[must_use]
    pub fn enter(&self) -> Inside {
        let before = File::open("/proc/thread-self/ns/net").expect("this namespace");
        let hub = File::open(format!("/run/netns/{}", self.hub)).expect("the hub's namespace");
        move_to(&hub);
        Inside { before }
    }

    /// Packets from one node to another one vanish, unnoticed by both; the other way stays open.
    pub fn cut(&self, from: u64, to: u64) {
        self.send_to(from, to, NOWHERE);
    }

    /// Cuts both ways.
    pub fn part(&self, one: u64, other: u64) {
        self.cut(one, other);
        self.cut(other, one);
    }

    /// Cuts a node off from all others; the test still reaches it.
    pub fn isolate(&self, id: u64) {
        (1..=self.nodes.len() as u64).filter(|other| *other != id).for_each(|o| self.part(id, o));
    }

    /// Mends everything.
    pub fn heal(&self) {
        for from in 1..=self.nodes.len() as u64 {
            for to in (1..=self.nodes.len() as u64).filter(|to| *to != from) {
                self.send_to(from, to, &mac(to));
            }
        }
    }

    fn send_to(&self, from: u64, to: u64, mac: &str) {
        must(&format!(
            "-n {} neigh replace {NET}.{to} lladdr {mac} dev eth0 nud permanent",
            self.name(from)
        ));
    }
}

fn move_to(namespace: &File) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("CAP_SYS_ADMIN, which the namespaces were made with");
}

/// While it lives, the thread that made it stands in the network's hub.
#[derive(Debug)]
pub struct Inside {
    before: File,
}

impl Drop for Inside {
    fn drop(&mut self) {
        move_to(&self.before);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.nodes.iter().chain([&self.hub]) {
            // Else the reaper does it.
            let _ = ip(&format!("netns del {name}"));
        }
    }
}
