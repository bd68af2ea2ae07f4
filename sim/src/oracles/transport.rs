//! O28. Transport: what a process hears was sent to that very process by whom it is said to be from, and
//! each message is heard once.
//!
//! `highwater_node::env::Transport`, on which drivers and cores rely. Failures 14, 16.

use std::collections::BTreeMap;

use highwater_core::{NodeId, Peer};

use super::{Verdict, broken};

/// Whom a message is from, who it is for (a process of a node), and a digest of its bytes.
type Letter = (Peer, (NodeId, u64), u64);

/// What is under way; what is lost with a connection stays.
#[derive(Debug, Default)]
pub(crate) struct Transport {
    under_way: BTreeMap<Letter, u64>,
}

impl Transport {
    /// A message is sent to the process that a node runs at present.
    pub(crate) fn sends(&mut self, from: Peer, to: (NodeId, u64), digest: u64) {
        *self.under_way.entry((from, to, digest)).or_default() += 1;
    }

    /// A process hears a message.
    pub(crate) fn hears(&mut self, to: (NodeId, u64), from: Peer, digest: u64) -> Verdict {
        let Some(count) = self.under_way.get_mut(&(from, to, digest)) else {
            let (node, process) = to;
            let what = format!(
                "process {process} of {node:?} hears from {from:?} what was not sent to it, or twice"
            );
            return Err(broken(what).on(node).on(from.member.node));
        };
        *count -= 1;
        if *count == 0 {
            self.under_way.remove(&(from, to, digest));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use highwater_core::Boot;

    use super::*;

    const TO: (NodeId, u64) = (NodeId(2), 7);

    #[test]
    fn fires_on_a_message_heard_twice() {
        let (mut oracle, from) = (Transport::default(), Peer::default());
        oracle.sends(from, TO, 1);
        oracle.sends(from, TO, 1);
        assert!(oracle.hears(TO, from, 1).is_ok() && oracle.hears(TO, from, 1).is_ok());
        assert!(oracle.hears(TO, from, 1).is_err());
    }

    #[test]
    fn fires_on_what_was_sent_otherwise() {
        let (mut oracle, from) = (Transport::default(), Peer::default());
        oracle.sends(from, TO, 1);
        assert!(oracle.hears((NodeId(2), 8), from, 1).is_err(), "to an earlier process");
        assert!(oracle.hears((NodeId(1), 7), from, 1).is_err(), "to another node");
        assert!(oracle.hears(TO, from, 2).is_err(), "in other words");
        let other = Peer { boot: Boot { counter: 9, nonce: 9 }, ..from };
        assert!(oracle.hears(TO, other, 1).is_err(), "by another start");
        assert!(oracle.hears(TO, from, 1).is_ok());
    }
}
