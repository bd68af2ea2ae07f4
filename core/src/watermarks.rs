//! The one type for the watermarks of a replica (`semantics.md`, "Watermarks").

use crate::types::Lsn;

/// How far a replica is, in LSNs. Always `checkpointed ≤ applied ≤ min(committed, durable)`,
/// `pruned ≤ min(committed, durable)`, `committed ≤ appended` and `durable ≤ appended`; every change
/// asserts it, in release too. Nothing falls but `appended` and `durable`, and those only through
/// truncation, or where a snapshot takes the place of the log; and what concerns the state, where the
/// state itself is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watermarks {
    pruned: Lsn,
    appended: Lsn,
    durable: Lsn,
    committed: Lsn,
    applied: Lsn,
    checkpointed: Lsn,
}

impl Watermarks {
    /// After a restart: the log is fsynced up to `last`, and all that is known to be committed is
    /// what was checkpointed, or pruned.
    ///
    /// # Panics
    /// If `checkpointed > last`: the log lost what the state holds.
    pub(crate) fn recovered(pruned: Lsn, last: Lsn, checkpointed: Lsn) -> Watermarks {
        let marks = Watermarks {
            pruned,
            appended: last,
            durable: last,
            committed: checkpointed.max(pruned),
            applied: checkpointed,
            checkpointed,
        };
        marks.check();
        marks
    }

    /// Not in the log any more up to here.
    #[must_use]
    pub fn pruned(&self) -> Lsn {
        self.pruned
    }
    /// The first LSN that the log has, or will have.
    #[must_use]
    pub fn first(&self) -> Lsn {
        self.pruned.next()
    }
    /// Last LSN in the log, fsynced or not.
    #[must_use]
    pub fn appended(&self) -> Lsn {
        self.appended
    }
    /// fsynced up to here.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.durable
    }
    /// Known to be durable on a quorum up to here.
    #[must_use]
    pub fn committed(&self) -> Lsn {
        self.committed
    }
    /// Applied to the state up to here.
    #[must_use]
    pub fn applied(&self) -> Lsn {
        self.applied
    }
    /// Durable in the state up to here.
    #[must_use]
    pub fn checkpointed(&self) -> Lsn {
        self.checkpointed
    }

    /// One more entry.
    pub(crate) fn append(&mut self, lsn: Lsn) {
        assert_eq!(lsn, self.appended.next(), "an append leaves no hole");
        self.appended = lsn;
    }

    /// Drops the entries after `to`.
    pub(crate) fn truncate(&mut self, to: Lsn) {
        assert!(to >= self.committed, "nothing committed is truncated");
        assert!(to <= self.appended, "truncation does not extend");
        self.appended = to;
        self.durable = self.durable.min(to);
    }

    /// fsynced up to `lsn`. Lower than before raises nothing.
    pub(crate) fn persist(&mut self, lsn: Lsn) {
        assert!(lsn <= self.appended, "what is durable was appended");
        self.durable = self.durable.max(lsn);
    }

    /// Committed up to `lsn`. Lower than before raises nothing.
    pub(crate) fn commit(&mut self, lsn: Lsn) {
        assert!(lsn <= self.appended, "what is committed was appended");
        self.committed = self.committed.max(lsn);
    }

    /// What may be applied: committed, and durable here.
    #[must_use]
    pub fn applicable(&self) -> Lsn {
        self.committed.min(self.durable)
    }

    /// Applied up to `lsn`.
    pub(crate) fn apply(&mut self, lsn: Lsn) {
        assert!(lsn >= self.applied, "applied never falls");
        assert!(lsn <= self.applicable(), "only what is committed and durable is applied");
        self.applied = lsn;
    }

    /// Checkpointed up to `lsn`.
    pub(crate) fn checkpoint(&mut self, lsn: Lsn) {
        assert!(lsn >= self.checkpointed, "checkpointed never falls");
        assert!(lsn <= self.applied, "what is checkpointed was applied");
        self.checkpointed = lsn;
    }

    /// The log begins after `to`.
    pub(crate) fn prune(&mut self, to: Lsn) {
        assert!(to >= self.pruned, "pruned never falls");
        assert!(to <= self.applicable(), "only what is committed and durable is pruned");
        self.pruned = to;
    }

    /// A snapshot at `lsn` is the state, durably; what the log has after that stays where `keeps` says
    /// so.
    pub(crate) fn install(&mut self, lsn: Lsn, keeps: bool) {
        assert!(lsn >= self.applied, "a snapshot is further than what is applied");
        let after = |mark: Lsn| if keeps { mark.max(lsn) } else { lsn };
        (self.appended, self.durable) = (after(self.appended), after(self.durable));
        self.committed = self.committed.max(lsn);
        self.pruned = self.pruned.max(if keeps { self.pruned } else { lsn });
        (self.applied, self.checkpointed) = (lsn, lsn);
        self.check();
    }

    /// The state is lost: it holds nothing durably, and only what was `applied` elsewhere.
    pub(crate) fn lose_state(&mut self, applied: Lsn) {
        assert!(applied <= self.applied, "a loss gains nothing");
        self.applied = applied;
        self.checkpointed = Lsn(0);
    }

    /// Asserts the order.
    pub(crate) fn check(&self) {
        assert!(self.checkpointed <= self.applied, "checkpointed ≤ applied: {self:?}");
        assert!(self.applied <= self.applicable(), "applied ≤ min(committed, durable): {self:?}");
        assert!(self.pruned <= self.applicable(), "pruned ≤ min(committed, durable): {self:?}");
        assert!(self.committed <= self.appended, "committed ≤ appended: {self:?}");
        assert!(self.durable <= self.appended, "durable ≤ appended: {self:?}");
    }
}
