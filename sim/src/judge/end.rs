//! What is checked once faults have ended.

use highwater_core::{Lsn, NodeId};

use super::Judge;
use crate::{
    oracles::{durability, liveness::unsettled, state_machine::holds_all},
    stats::Seen,
};

impl Judge {
    /// Why the cluster has not settled; empty once it has.
    pub(crate) fn unsettled(&self, nodes: &[NodeId]) -> Vec<String> {
        let state = self.lock();
        unsettled(nodes, &state.machine.groups(), &state.standings)
    }

    /// The last checks, once these nodes have settled and nobody calls any more.
    pub(crate) fn finish(&self, nodes: &[NodeId]) {
        let (mut state, world) = (self.lock(), &self.world);
        state.histories.end();
        let took_effect = state.unknown.iter().filter(|op| state.outcomes.took_effect(**op));
        world.saw_times(Seen::UnknownTookEffect, took_effect.count() as u64);
        for (node, log) in state.logs.iter().filter(|(node, _)| nodes.contains(node)) {
            for group in state.machine.groups() {
                let log = log.log(group);
                let pruned = log.map_or(Lsn(0), |log| log.base().lsn);
                let holds = holds_all(*node, group, &state.machine, pruned, |lsn| log?.at(lsn));
                world.check("state-machine safety", holds);
            }
        }
        let term_at = |group, lsn| state.machine.at(group, lsn).map(|mark| mark.term);
        let holders = |group, lsn, term| {
            let counts = state.logs.iter().filter(|(node, _)| state.fencing.counts(**node));
            counts.filter(|(_, log)| log.holds(group, lsn, term)).count()
        };
        let acked = state.outcomes.all_acked();
        world.check("durability", durability::survives(acked, term_at, holders, state.voters));
        world.check("answers", state.answers.all_told());
        match state.histories.check() {
            Ok(undecided) => world.saw_times(Seen::HistoryUndecided, undecided),
            Err(broken) => world.fail("histories", broken),
        }
    }
}
