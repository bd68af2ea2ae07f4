//! A group whose log has lost its end, which this node may have acknowledged. Until it certainly
//! holds all of that again it follows and confirms, but does not vote: a quorum with its vote might
//! elect a leader that lacks what another quorum, with its confirmation, committed.

use super::{Group, Role};
use crate::{
    context::Context,
    entry::Record,
    io::Notice,
    types::{GroupId, Lsn, WriteId},
};

/// Whether the log holds everything that this node may ever have acknowledged in it.
pub(super) enum Soundness {
    Sound,
    InDoubt,
    /// Sound with this commit mark, once the write that says so is durable.
    Proven {
        committed: Lsn,
        write: WriteId,
    },
}

impl Group {
    pub(crate) fn is_in_doubt(&self) -> bool {
        !matches!(self.soundness, Soundness::Sound)
    }

    /// Ends the doubt where the leader has told a commit mark, at an entry of its own term, and
    /// everything up to there is durable here. What was committed with what this node acknowledged
    /// before the damage is in the leader's log, since the leader was elected without this node's
    /// vote in doubt, and is not beyond that mark, since a leader that knows of this start counts
    /// nothing that an earlier one confirmed.
    pub(super) fn prove_sound(&mut self, ctx: &mut Context) {
        let (Soundness::InDoubt, Role::Follower { leader: Some(_), verified, told, .. }) =
            (&self.soundness, &self.role)
        else {
            return;
        };
        let committed = *told;
        let held = self.log.marks().durable().min(*verified);
        let owed = ctx.recall.owed(self.id, self.term).max(committed);
        if owed > held || self.log.term_at(committed) != Some(self.term) {
            return;
        }
        let write = ctx.persist(self.id, Record::Sound { group: self.id, committed });
        self.soundness = Soundness::Proven { committed, write };
    }

    pub(super) fn on_soundness_persisted(&mut self, ctx: &mut Context) {
        let Soundness::Proven { committed, write } = self.soundness else { return };
        if !ctx.is_persisted(write) {
            return;
        }
        self.soundness = Soundness::Sound;
        ctx.recall.settle(self.id);
        if self.id == GroupId::SYSTEM
            && let Some(doubt) = &mut ctx.doubt
        {
            doubt.bound = Some(committed);
        }
        ctx.notice(Notice::Sound { group: self.id });
    }
}
