//! `ETag`, `If-Match` and `If-None-Match`.

use axum::http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{IF_MATCH, IF_NONE_MATCH},
};
use highwater_core::{GroupId, Lsn};
use highwater_wire::op::{Condition, Versions};

use crate::problem::Problem;

/// The `ETag` of a record.
pub(crate) fn etag(group: GroupId, version: Lsn) -> HeaderValue {
    HeaderValue::try_from(format!("\"{group}-{version}\""))
        .unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// One header: `*`, or a list of entity tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tags {
    Any,
    Of(Vec<Tag>),
}

/// One entity tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    weak: bool,
    /// What it names, if it is one of ours; a tag of anybody else matches nothing.
    names: Option<(GroupId, Lsn)>,
}

/// The preconditions of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Preconditions {
    if_match: Option<Tags>,
    if_none_match: Option<Tags>,
}

/// How a read stands towards its preconditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// They hold.
    Holds,
    /// `If-None-Match` matches what the client has.
    NotModified,
    /// They do not hold.
    Fails,
}

impl Preconditions {
    /// Reads both headers; a malformed one is an error.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Preconditions, Problem> {
        Ok(Preconditions {
            if_match: tags(headers, &IF_MATCH)?,
            if_none_match: tags(headers, &IF_NONE_MATCH)?,
        })
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.if_match.is_none() && self.if_none_match.is_none()
    }

    /// Whether `If-Match` was sent.
    pub(crate) fn has_if_match(&self) -> bool {
        self.if_match.is_some()
    }

    /// Whether the database's group must be known to tell what they mean.
    pub(crate) fn name_versions(&self) -> bool {
        [&self.if_match, &self.if_none_match].into_iter().flatten().any(
            |tags| matches!(tags, Tags::Of(list) if list.iter().any(|tag| tag.names.is_some())),
        )
    }

    /// As a condition of a write. Tags of another group never match; without a group, none does.
    pub(crate) fn condition(&self, group: Option<GroupId>) -> Condition {
        Condition {
            // Strong comparison: a weak tag matches nothing.
            matches: self.if_match.as_ref().map(|tags| versions(tags, group, |tag| !tag.weak)),
            matches_none: self.if_none_match.as_ref().map(|tags| versions(tags, group, |_| true)),
        }
    }

    /// Judges a read of a record that is at `version`; 0 where there is none.
    pub(crate) fn judge(&self, group: GroupId, version: Lsn) -> Verdict {
        let Condition { matches, matches_none } = self.condition(Some(group));
        if matches.is_some_and(|versions| !matched(&versions, version)) {
            return Verdict::Fails;
        }
        match matches_none {
            Some(versions) if matched(&versions, version) => Verdict::NotModified,
            _ => Verdict::Holds,
        }
    }
}

fn versions(tags: &Tags, group: Option<GroupId>, counts: impl Fn(&Tag) -> bool) -> Versions {
    match tags {
        Tags::Any => Versions::Any,
        Tags::Of(list) => Versions::Of(
            list.iter()
                .filter(|tag| counts(tag))
                .filter_map(|tag| tag.names)
                .filter(|(of, _)| Some(*of) == group)
                .map(|(_, version)| version)
                .collect(),
        ),
    }
}

fn matched(versions: &Versions, version: Lsn) -> bool {
    version != Lsn(0)
        && match versions {
            Versions::Any => true,
            Versions::Of(list) => list.contains(&version),
        }
}

/// All lines of one header, as one list (RFC 9110, 5.3 and 13.1).
fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, Problem> {
    let lines: Vec<&HeaderValue> = headers.get_all(name).iter().collect();
    if lines.is_empty() {
        return Ok(None);
    }
    let text = lines.iter().map(|line| line.as_bytes()).collect::<Vec<_>>().join(&b',');
    match parse(&text) {
        Some(tags) => Ok(Some(tags)),
        None => Err(Problem::bad_request(format!(
            "{name} is malformed: it is `*` or a list of entity tags such as \"12-34\""
        ))),
    }
}

fn parse(text: &[u8]) -> Option<Tags> {
    let mut rest = text.trim_ascii();
    if rest == b"*" {
        return Some(Tags::Any);
    }
    let mut list = Vec::new();
    loop {
        // Empty elements are legal in a list.
        rest = rest.trim_ascii_start();
        while let [b',', tail @ ..] = rest {
            rest = tail.trim_ascii_start();
        }
        if rest.is_empty() {
            return (!list.is_empty()).then_some(Tags::Of(list));
        }
        let (weak, tail) = match rest {
            [b'W', b'/', tail @ ..] => (true, tail),
            tail => (false, tail),
        };
        let [b'"', tail @ ..] = tail else { return None };
        let end = tail.iter().position(|byte| *byte == b'"')?;
        let (opaque, tail) = tail.split_at(end);
        if !opaque.iter().all(|byte| matches!(byte, 0x21..=0x7e | 0x80..)) {
            return None;
        }
        list.push(Tag { weak, names: ours(opaque) });
        rest = tail[1..].trim_ascii_start();
        if !matches!(rest, [] | [b',', ..]) {
            return None;
        }
    }
}

/// What a tag names, if it is spelled exactly as [`etag`] spells it.
fn ours(opaque: &[u8]) -> Option<(GroupId, Lsn)> {
    let (group, version) = std::str::from_utf8(opaque).ok()?.split_once('-')?;
    Some((GroupId(canonical(group)?), Lsn(canonical(version)?)))
}

fn canonical(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(5);

    fn preconditions(lines: &[(HeaderName, &str)]) -> Result<Preconditions, Problem> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        Preconditions::of(&headers)
    }

    fn matches(value: &str) -> Option<Versions> {
        preconditions(&[(IF_MATCH, value)]).unwrap().condition(Some(GROUP)).matches
    }

    fn matches_none(value: &str) -> Option<Versions> {
        preconditions(&[(IF_NONE_MATCH, value)]).unwrap().condition(Some(GROUP)).matches_none
    }

    #[test]
    fn an_etag_names_its_record_and_no_other() {
        let tag = etag(GROUP, Lsn(12));
        assert_eq!(tag, "\"5-12\"");
        assert_eq!(matches("\"5-12\""), Some(Versions::Of(vec![Lsn(12)])));
        for other in
            ["\"6-12\"", "\"05-12\"", "\"5-+12\"", "\"5-12 \"", "\"5-\"", "\"abc\"", "\"\""]
        {
            match preconditions(&[(IF_MATCH, other)]) {
                Ok(found) => {
                    let condition = found.condition(Some(GROUP));
                    assert_eq!(condition.matches, Some(Versions::Of(vec![])), "{other}");
                }
                Err(_) => assert_eq!(other, "\"5-12 \""),
            }
        }
    }

    #[test]
    fn lists_span_lines_and_may_have_empty_elements() {
        let all = Some(Versions::Of(vec![Lsn(1), Lsn(2), Lsn(3)]));
        assert_eq!(matches("\"5-1\",\"5-2\" ,\t\"5-3\""), all);
        assert_eq!(matches(",, \"5-1\", ,\"5-2\",\"5-3\","), all);
        let lines = [(IF_MATCH, "\"5-1\""), (IF_MATCH, "\"5-2\", \"5-3\"")];
        assert_eq!(preconditions(&lines).unwrap().condition(Some(GROUP)).matches, all);
        assert_eq!(matches("\"a,b\", \"5-1\""), Some(Versions::Of(vec![Lsn(1)])));
    }

    #[test]
    fn weak_tags_match_weakly_only() {
        assert_eq!(matches("W/\"5-1\""), Some(Versions::Of(vec![])));
        assert_eq!(matches_none("W/\"5-1\""), Some(Versions::Of(vec![Lsn(1)])));
        assert_eq!(matches("*"), Some(Versions::Any));
        assert_eq!(matches_none(" * "), Some(Versions::Any));
    }

    #[test]
    fn a_malformed_header_is_an_error() {
        for bad in [
            "",
            ",",
            "5-1",
            "\"5-1",
            "5-1\"",
            "*, \"5-1\"",
            "\"5-1\", *",
            "**",
            "\"5-1\" \"5-2\"",
            "w/\"5-1\"",
            "W/ \"5-1\"",
            "\"5 1\"",
            "W/",
        ] {
            assert!(preconditions(&[(IF_MATCH, bad)]).is_err(), "{bad}");
            assert!(preconditions(&[(IF_NONE_MATCH, bad)]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_read_is_judged_before_existence() {
        let judge = |name: HeaderName, value: &str, version: u64| {
            preconditions(&[(name, value)]).unwrap().judge(GROUP, Lsn(version))
        };
        assert_eq!(judge(IF_MATCH, "\"5-1\"", 1), Verdict::Holds);
        assert_eq!(judge(IF_MATCH, "\"5-1\"", 2), Verdict::Fails);
        assert_eq!(judge(IF_MATCH, "*", 0), Verdict::Fails);
        assert_eq!(judge(IF_MATCH, "\"5-0\"", 0), Verdict::Fails);
        assert_eq!(judge(IF_NONE_MATCH, "\"5-1\"", 1), Verdict::NotModified);
        assert_eq!(judge(IF_NONE_MATCH, "*", 1), Verdict::NotModified);
        assert_eq!(judge(IF_NONE_MATCH, "*", 0), Verdict::Holds);
        assert_eq!(judge(IF_NONE_MATCH, "\"6-1\"", 1), Verdict::Holds);
    }
}
