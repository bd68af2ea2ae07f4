//! Where a planted fault had its chance, for whoever judges a page.

use std::{cell::RefCell, collections::BTreeMap};

use highwater_core::{NodeId, planted};
use madsim::task::NodeId as Process;

thread_local! {
    static PROCESSES: RefCell<BTreeMap<Process, NodeId>> = const { RefCell::new(BTreeMap::new()) };
    static ACTS: RefCell<Vec<NodeId>> = const { RefCell::new(Vec::new()) };
}

/// Notes from now on where the planted fault acts. A run has a thread of its own.
pub(crate) fn watch() {
    planted::on_act(|| {
        let node = PROCESSES.with_borrow(|all| all.get(&madsim::plugin::node()).copied());
        ACTS.with_borrow_mut(|acts| acts.extend(node));
    });
}

/// This is a process of that node.
pub(crate) fn runs(process: Process, node: NodeId) {
    PROCESSES.with_borrow_mut(|all| all.insert(process, node));
}

/// Where it acted since the last call.
pub(crate) fn take() -> Vec<NodeId> {
    ACTS.take()
}
