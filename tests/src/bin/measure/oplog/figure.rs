//! One figure and its aim.

use std::fmt;

use serde::{Serialize, Serializer};

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    #[serde(serialize_with = "as_text")]
    aim: Option<Aim>,
    verdict: &'static str,
    conditions: String,
}

/// Where a figure should be, in its unit.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aim {
    /// Less than this.
    Under(f64),
    /// This or more; what is less, but at least the other one, is acceptable.
    Toward(f64, f64),
}

impl Figure {
    pub(crate) fn new(
        name: &'static str,
        (value, unit): (f64, &'static str),
        aim: Option<Aim>,
        conditions: String,
    ) -> Figure {
        let verdict = match aim {
            None => "",
            Some(Aim::Under(most)) if value < most => "met",
            Some(Aim::Toward(aim, _)) if value >= aim => "met",
            Some(Aim::Toward(_, floor)) if value >= floor => "acceptable",
            Some(_) => "MISSED",
        };
        Figure { name, value, unit, aim, verdict, conditions }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Aim::Under(most) => write!(f, "< {most}"),
            Aim::Toward(aim, floor) => write!(f, "≥ {aim:.0}, at least {floor:.0}"),
        }
    }
}

fn as_text<S: Serializer>(aim: &Option<Aim>, serializer: S) -> Result<S::Ok, S::Error> {
    match aim {
        Some(aim) => serializer.collect_str(aim),
        None => serializer.serialize_none(),
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figure { name, value, unit, aim, verdict, conditions } = self;
        let aim = aim.map(|aim| aim.to_string()).unwrap_or_default();
        let digits = if *value < 100.0 { 2 } else { 0 };
        write!(f, "| {name} | {value:.digits$} {unit} | {aim} | {verdict} | {conditions} |")
    }
}
