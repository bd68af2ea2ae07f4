//! What the core noticed, told to the operator.

use highwater_core::Notice;

pub(super) fn log_notice(notice: &Notice) {
    match notice {
        Notice::Formed { member: true } => tracing::info!("the cluster is formed; this node votes"),
        Notice::Formed { member: false } => tracing::warn!(
            "the cluster was formed with another data directory of this node: it follows and \
             serves local reads, but does not vote until it is replaced through membership"
        ),
        Notice::Quarantined { group, reason } => tracing::error!(
            %group, %reason,
            "a database is quarantined on this node: it is not served from here; others are not \
             affected"
        ),
        Notice::Rebuilding { group, reason } => tracing::error!(
            %group, %reason,
            "a database's state was damaged on this node: it is dropped and rebuilt from the oplog, \
             and not served from here until then; others are not affected"
        ),
        Notice::Rebuilt { group } => {
            tracing::warn!(%group, "a database's state is rebuilt, and served again");
        }
        Notice::Diverged { group, lsn } => tracing::error!(
            %group, %lsn,
            "a database's state on this node is not what a majority has: it is dropped and rebuilt \
             from the oplog, and not served from here until then. This is damage, or a bug: please \
             report it"
        ),
        Notice::RootsDiffer { group, lsn } => tracing::error!(
            %group, %lsn,
            "the replicas of a database are not the same: whoever is not as the majority is leaves \
             service and is rebuilt"
        ),
        Notice::Bootstrapping { group, from, above } => tracing::warn!(
            %group, %from, %above,
            "no log can bring a database up to date here: a snapshot is fetched"
        ),
        Notice::Bootstrapped { group, at } => {
            tracing::warn!(%group, %at, "a database goes on from a snapshot");
        }
        Notice::Pruned { group, first } => tracing::debug!(%group, %first, "a log is pruned"),
        Notice::Sound { group } => {
            tracing::warn!(%group, "a group that had lost the end of its log holds it again: it votes");
        }
        Notice::Unreadable { group, from, to, reason } => {
            tracing::error!(%group, %from, %to, %reason, "entries can't be read: peers are asked");
        }
        Notice::Mended { group, from, to } => {
            tracing::warn!(%group, %from, %to, "damaged entries were fetched from a peer");
        }
        Notice::SlotAtRisk { group, name, cause } => {
            tracing::warn!(%group, slot = %name, ?cause, "a slot has used three quarters of a limit");
        }
        Notice::SlotInvalidated { group, name, cause } => {
            tracing::error!(%group, slot = %name, ?cause, "a slot is invalidated: it holds back nothing");
        }
        Notice::PeerFault { node, reason } => {
            tracing::warn!(%node, reason, "a peer sent what no correct node sends; dropped");
        }
    }
}
