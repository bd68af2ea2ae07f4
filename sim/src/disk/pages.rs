//! A file's bytes as pages that copies of it share until they are written: a sync, a power cut and a
//! copy of a whole disk cost next to nothing, and zeros nothing at all.

use std::{ops::Range, sync::Arc};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
const ZEROS: [u8; PAGE] = [0; PAGE];

/// The bytes of a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pages {
    len: usize,
    /// `None`: zeros. What is beyond `len` is zero as well.
    pages: Vec<Option<Arc<[u8; PAGE]>>>,
}

/// The parts of a range, page by page: which page, where in it, where in the range.
fn parts(offset: usize, len: usize) -> impl Iterator<Item = (usize, usize, Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (page, within) = ((offset + at) / PAGE, (offset + at) % PAGE);
        let part = at..len.min(at + PAGE - within);
        at = part.end;
        (!part.is_empty()).then_some((page, within, part))
    })
}

impl Pages {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Reads into `out`; how much there was.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> usize {
        let len = out.len().min(self.len.saturating_sub(offset));
        for (page, within, part) in parts(offset, len) {
            let out = &mut out[part];
            match &self.pages[page] {
                Some(page) => out.copy_from_slice(&page[within..within + out.len()]),
                None => out.fill(0),
            }
        }
        len
    }

    /// What there is of a range.
    pub(crate) fn read_some(&self, offset: usize, len: usize) -> Vec<u8> {
        let len = len.min(self.len.saturating_sub(offset));
        let mut out = Vec::with_capacity(len);
        for (page, within, part) in parts(offset, len) {
            let page = self.pages[page].as_deref().unwrap_or(&ZEROS);
            out.extend_from_slice(&page[within..within + part.len()]);
        }
        out
    }

    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        self.resize(self.len.max(offset + data.len()));
        for (page, within, part) in parts(offset, data.len()) {
            let (page, data) = (&mut self.pages[page], &data[part]);
            if let Ok(whole) = <&[u8; PAGE]>::try_from(data) {
                *page = (*whole != ZEROS).then(|| Arc::new(*whole));
            } else {
                let page = page.get_or_insert_with(|| Arc::new(ZEROS));
                Arc::make_mut(page)[within..within + data.len()].copy_from_slice(data);
            }
        }
    }

    pub(crate) fn resize(&mut self, len: usize) {
        if len < self.len
            && let Some(Some(page)) = self.pages.get_mut(len / PAGE)
        {
            Arc::make_mut(page)[len % PAGE..].fill(0);
        }
        self.len = len;
        self.pages.resize(len.div_ceil(PAGE), None);
    }

    /// Whether one of these pages was never written, or only zeros to it.
    pub(crate) fn has_hole(&self, pages: Range<usize>) -> bool {
        pages.into_iter().any(|page| !matches!(self.pages.get(page), Some(Some(_))))
    }

    /// Takes these pages from another file of at least that length.
    pub(crate) fn share(&mut self, of: &Pages, pages: Range<usize>) {
        let pages = pages.start..pages.end.min(of.pages.len());
        if pages.is_empty() {
            return;
        }
        self.resize(self.len.max(of.len.min(pages.end * PAGE)));
        self.pages[pages.clone()].clone_from_slice(&of.pages[pages]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn all(pages: &Pages) -> Vec<u8> {
        let mut out = vec![9; pages.len()];
        assert_eq!(pages.read(0, &mut out), out.len());
        assert_eq!(pages.read_some(0, out.len() + 1), out);
        out
    }

    #[test]
    fn is_what_a_vector_would_be() {
        let mut rng = Rng::stream(1, "test", 0);
        let (mut pages, mut model) = (Pages::default(), Vec::new());
        let mut copies = Vec::new();
        for step in 0..2_000 {
            if rng.percent(10) {
                let len = rng.below(5 * PAGE as u64) as usize;
                pages.resize(len);
                model.resize(len, 0);
            } else {
                let aligned = rng.percent(50);
                let (offset, len) = match aligned {
                    true => (rng.below(4) as usize * PAGE, PAGE),
                    false => (rng.below(3 * PAGE as u64) as usize, rng.below(6_000) as usize),
                };
                let data = vec![(rng.below(3) * step) as u8; len];
                pages.write(offset, &data);
                model.resize(model.len().max(offset + len), 0);
                model[offset..offset + len].copy_from_slice(&data);
            }
            assert_eq!(all(&pages), model, "step {step}");
            if rng.percent(5) {
                copies.push((pages.clone(), model.clone()));
            }
        }
        assert!(copies.iter().all(|(pages, model)| all(pages) == *model));
    }

    #[test]
    fn reads_end_at_the_end() {
        let mut pages = Pages::default();
        pages.write(PAGE - 1, b"ab");
        let mut out = [7; 4];
        assert_eq!((pages.read(PAGE - 1, &mut out), out), (2, *b"ab\x07\x07"));
        assert_eq!(pages.read(PAGE + 9, &mut out), 0);
        let mut other = Pages::default();
        other.share(&pages, 1..2);
        assert_eq!(all(&other)[PAGE..], *b"b");
    }
}
