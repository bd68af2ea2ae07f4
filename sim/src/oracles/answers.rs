//! O18. Every question has one answer: a request of a node's core at most one, a client's call
//! exactly one, by its deadline or soon after.
//!
//! semantics.md 2; http-api.md, deadlines. Failures 19, 58.

use std::collections::{BTreeMap, BTreeSet};

use highwater_core::{NodeId, RequestId};

use super::{Verdict, broken};

/// What was answered, and what is open.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    answered: BTreeMap<(NodeId, u64), BTreeSet<RequestId>>,
    calls: BTreeSet<u64>,
}

impl Answers {
    /// A node's core answers a request.
    pub(crate) fn answers(&mut self, process: (NodeId, u64), request: RequestId) -> Verdict {
        if !self.answered.entry(process).or_default().insert(request) {
            let what = format!("{:?} answers {request:?} twice", process.0);
            return Err(broken(what).on(process.0));
        }
        Ok(())
    }

    /// A client calls.
    pub(crate) fn calls(&mut self, call: u64) {
        self.calls.insert(call);
    }

    /// A client has its answer.
    pub(crate) fn told(&mut self, call: u64) -> Verdict {
        if !self.calls.remove(&call) {
            return Err(broken(format!("call #{call} is answered, and is not open")));
        }
        Ok(())
    }

    /// Nobody calls any more.
    pub(crate) fn all_told(&self) -> Verdict {
        match self.calls.first() {
            Some(call) => Err(broken(format!("call #{call} was never answered"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_on_a_second_answer_and_on_none() {
        let mut oracle = Answers::default();
        assert!(oracle.answers((NodeId(1), 1), RequestId(5)).is_ok());
        assert!(oracle.answers((NodeId(1), 2), RequestId(5)).is_ok(), "another process");
        assert!(oracle.answers((NodeId(1), 1), RequestId(5)).is_err());
        oracle.calls(3);
        assert!(oracle.all_told().is_err());
        assert!(oracle.told(3).is_ok());
        assert!(oracle.told(3).is_err());
        assert!(oracle.all_told().is_ok());
    }
}
