//! How much a broken rule matters, and what mode `repair` does about it.

/// How much a broken rule matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Legal, and worth knowing. Counted, not logged.
    Info,
    /// Implementations may read it differently.
    Warn,
    /// The trace breaks, or the readings are known to differ.
    Error,
}

impl Severity {
    /// As it is written in configuration, logs and documentation.
    pub fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// What mode `repair` does about a broken rule.
///
/// All of these but the last three are one act: what the request says in B3 is
/// read once ([`crate::rules`]) and written again in the formats that it came in
/// ([`crate::relay::rewrite`]). They say what comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Removes trace, span and parent; keeps a valid decision of the multiple headers: one in
    /// `b3` goes with its identifiers.
    DropIds,
    /// Puts zeros before the ID.
    Pad,
    /// Writes the ID in lower case.
    LowerCase,
    /// Removes the parent.
    RemoveParent,
    /// Removes the decision, so that the receiver makes it.
    RemoveDecision,
    /// Writes the canonical form.
    Rewrite,
    /// Keeps the one value if all are equal, else removes the header.
    FirstIfEqual,
    /// Keeps the first value.
    First,
    /// Takes the other form, if it is good.
    OtherForm,
    /// Writes debug into the multiple headers, and 1 into the single one.
    MultiFormat,
    /// Takes the single header, as the specification says.
    Single,
    /// Takes the form that is newer, or else the single header.
    Newer,
    /// Takes the trace ID of 128 bits.
    Wide,
    /// Takes what is missing in one form from the other.
    FoldIn,
    /// Fills it in, in every mode.
    Generate,
    /// Copies it onto the call, in every mode.
    Relay,
    /// Nothing.
    None,
}

impl Repair {
    /// What it does, as documentation says it.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::DropIds => "removes trace, span and parent; keeps a valid `x-b3-sampled`",
            Self::Pad => "puts zeros before the ID",
            Self::LowerCase => "writes the ID in lower case",
            Self::RemoveParent => "removes the parent",
            Self::RemoveDecision => "removes the decision, so that the receiver makes it",
            Self::Rewrite => "writes the canonical form",
            Self::FirstIfEqual => "keeps the value if all are equal, else removes the header",
            Self::First => "keeps the first value",
            Self::OtherForm => "takes the other form, if it is good",
            Self::MultiFormat => "writes debug into the multiple headers, and 1 into b3",
            Self::Single => "takes the single header, as the specification says",
            Self::Newer => {
                "takes the form whose parent is the other's span, or else the single header"
            }
            Self::Wide => "takes the trace ID of 128 bits",
            Self::FoldIn => "takes what is missing in one form from the other",
            Self::Generate => "fills it in, in every mode",
            Self::Relay => "copies the context onto the call, in every mode",
            Self::None => "nothing",
        }
    }

    /// Mode `repair` rewrites the headers of a request for it.
    pub fn rewrites(self) -> bool {
        !matches!(self, Self::Generate | Self::Relay | Self::None)
    }
}
