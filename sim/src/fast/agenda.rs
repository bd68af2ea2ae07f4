//! Virtual time, and what is to happen in it.

use std::{cell::Cell, cmp::Reverse, collections::BinaryHeap};

thread_local! {
    /// Of the run on this thread.
    static NOW_NS: Cell<u64> = const { Cell::new(0) };
}

/// Nanoseconds of simulated time since this thread's run began.
pub(super) fn now_ns() -> u64 {
    NOW_NS.get()
}

/// What is to happen, in order of time; at one time in the order in which it was planned.
pub(super) struct Agenda<E> {
    /// Time, order, and where the event lies: small, since a heap moves what it holds.
    heap: BinaryHeap<Reverse<(u64, u64, u32)>>,
    events: Vec<Option<E>>,
    free: Vec<u32>,
    planned: u64,
}

impl<E> Agenda<E> {
    /// An empty one: time begins.
    pub(super) fn new() -> Agenda<E> {
        NOW_NS.set(0);
        Agenda { heap: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), planned: 0 }
    }

    /// Plans an event; what lies in the past happens now.
    pub(super) fn at(&mut self, at_ns: u64, event: E) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() as u32 - 1
        });
        self.events[slot as usize] = Some(event);
        self.planned += 1;
        self.heap.push(Reverse((at_ns.max(now_ns()), self.planned, slot)));
    }

    /// Plans an event so long from now.
    pub(super) fn after(&mut self, ns: u64, event: E) {
        self.at(now_ns() + ns, event);
    }

    /// The next event; it is its time now.
    pub(super) fn next(&mut self) -> Option<E> {
        let Reverse((at_ns, _, slot)) = self.heap.pop()?;
        NOW_NS.set(at_ns);
        self.free.push(slot);
        self.events[slot as usize].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_of_planning() {
        let mut agenda = Agenda::new();
        for (at, event) in [(5, 'c'), (3, 'a'), (5, 'd'), (4, 'b')] {
            agenda.at(at, event);
        }
        let order: Vec<_> = std::iter::from_fn(|| agenda.next().map(|e| (now_ns(), e))).collect();
        assert_eq!(order, [(3, 'a'), (4, 'b'), (5, 'c'), (5, 'd')]);
        agenda.at(2, 'e');
        agenda.after(1, 'f');
        assert_eq!((agenda.next(), now_ns()), (Some('e'), 5), "what is past happens now");
        assert_eq!((agenda.next(), now_ns()), (Some('f'), 6));
        assert_eq!(agenda.next(), None);
    }
}
