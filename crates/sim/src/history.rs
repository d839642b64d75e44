//! The history of a run: what each client asked and when, and what it was answered and when.
//!
//! The types are the history's own, so that a history can come from anywhere: the simulator
//! records it in virtual time, a test of real processes in real time, and both are written to and
//! read from the same lines of text. What a history must satisfy is [`crate::linearizability`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

use bytes::Bytes;

/// An operation on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The value.
    Get,
    /// The value, which may be an older one.
    Look(Sees),
    /// Sets the value.
    Put(Bytes),
    /// Sets the value to the decimal FNV-1a hash of the old one and this; answers the old one.
    PutHash(Bytes),
    /// Removes the key.
    Delete,
    /// Appends to the value.
    Append(Bytes),
    /// Sets the value if the old one is as expected.
    CompareAndSwap {
        /// What must be there.
        expected: Expected,
        /// The new value.
        value: Bytes,
    },
}

/// What a read that need not see the newest value must see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sees {
    /// What the client's earlier calls on the key have seen and done, or newer.
    Session,
    /// What was the newest value at some time, so long before the read or later.
    Bounded(u64),
}

/// What a compare-and-swap expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// This value. An absent key has none.
    Value(Bytes),
    /// This version. An absent key has version 0.
    Version(u64),
}

/// What an operation was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Get: the value. PutHash: the value before.
    Value(Option<Bytes>),
    /// Put: it is done.
    Done,
    /// Delete: whether there was something to remove.
    Deleted(bool),
    /// Append: the length of the new value.
    Appended(u64),
    /// Compare-and-swap: whether it was done.
    Swapped(bool),
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing is known: it may have taken effect at any time after its start, may do so after the
    /// end of the history, or never.
    Unknown,
    /// It was refused and certainly never takes effect.
    Refused,
    /// It was answered.
    Answered {
        /// When the client had the answer.
        at: u64,
        /// The answer.
        answer: Answer,
        /// The version of the record that was read or written, where the client was told one.
        version: Option<u64>,
    },
}

/// One call of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Who called.
    pub client: u64,
    /// When, before anything was sent. Any unit, the same in the whole history.
    pub start: u64,
    /// On which key.
    pub key: Bytes,
    /// What was asked.
    pub operation: Operation,
    /// How it ended.
    pub ending: Ending,
}

/// The calls of a run, in the order in which they started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    calls: Vec<Call>,
}

/// Names a call of a history that has not ended yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallNumber(usize);

impl History {
    /// An empty history.
    pub fn new() -> History {
        History::default()
    }

    /// A call starts; until told otherwise its outcome is unknown.
    pub fn begin(
        &mut self,
        client: u64,
        start: u64,
        key: Bytes,
        operation: Operation,
    ) -> CallNumber {
        self.push(Call { client, start, key, operation, ending: Ending::Unknown });
        CallNumber(self.calls.len() - 1)
    }

    /// The call was answered.
    pub fn answered(&mut self, call: CallNumber, at: u64, answer: Answer, version: Option<u64>) {
        let call = &mut self.calls[call.0];
        assert!(call.ending == Ending::Unknown, "a call ends twice: {call}");
        assert!(at >= call.start, "a call ends at {at}, before its start: {call}");
        call.ending = Ending::Answered { at, answer, version };
    }

    /// The call was refused, and certainly not executed.
    pub fn refused(&mut self, call: CallNumber) {
        let call = &mut self.calls[call.0];
        assert!(call.ending == Ending::Unknown, "a call ends twice: {call}");
        call.ending = Ending::Refused;
    }

    /// Adds a whole call.
    pub fn push(&mut self, call: Call) {
        self.calls.push(call);
    }

    /// All calls.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// The calls of each key.
    pub fn by_key(&self) -> BTreeMap<Bytes, Vec<Call>> {
        let mut keys: BTreeMap<Bytes, Vec<Call>> = BTreeMap::new();
        for call in &self.calls {
            keys.entry(call.key.clone()).or_default().push(call.clone());
        }
        keys
    }

    /// Checks the appends of which no two add the same bytes, each ending in `;` and holding no
    /// other: every value that was read holds each such element at most once, none that was never
    /// asked for and none that was refused. Linearizability implies it; this check costs less,
    /// names the culprit and does not share a line with the other.
    pub fn check_elements(&self) -> Result<(), String> {
        for (key, calls) in self.by_key() {
            let mut asked: BTreeMap<&[u8], &Call> = BTreeMap::new();
            let mut only_appends = true;
            for call in &calls {
                match &call.operation {
                    Operation::Append(element) => {
                        let plain = element.ends_with(b";")
                            && element.iter().filter(|byte| **byte == b';').count() == 1;
                        only_appends &= plain && asked.insert(element, call).is_none();
                    }
                    Operation::Get | Operation::Look(_) => {}
                    Operation::Put(_)
                    | Operation::PutHash(_)
                    | Operation::Delete
                    | Operation::CompareAndSwap { .. } => only_appends = false,
                }
            }
            if !only_appends {
                continue;
            }
            for call in &calls {
                if let Ending::Answered { answer: Answer::Value(Some(value)), .. } = &call.ending {
                    check_value(&key, call, value, &asked)?;
                }
            }
        }
        Ok(())
    }

    /// The history as lines of text, one a call.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for call in &self.calls {
            text.push_str(&call.to_string());
            text.push('\n');
        }
        text
    }

    /// The history of such lines. Empty lines and lines that begin with `#` are skipped.
    pub fn from_text(text: &str) -> Result<History, ParseError> {
        let mut history = History::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse_call(line) {
                Some(call) => history.push(call),
                None => return Err(ParseError { line: index + 1, text: line.to_string() }),
            }
        }
        Ok(history)
    }
}

fn check_value(
    key: &Bytes,
    read: &Call,
    value: &Bytes,
    asked: &BTreeMap<&[u8], &Call>,
) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for element in value.split_inclusive(|byte| *byte == b';') {
        let name = Escaped(element);
        let Some(append) = asked.get(element) else {
            return Err(format!("nobody appended {name} to {}: {read}", Escaped(key)));
        };
        if append.ending == Ending::Refused {
            return Err(format!("{name} was refused and is there: {append} / {read}"));
        }
        if !seen.insert(element) {
            return Err(format!("{name} is there twice: {append} / {read}"));
        }
    }
    Ok(())
}

/// A line that is not a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Its number, from 1.
    pub line: usize,
    /// The line.
    pub text: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} of the history is not a call: {}", self.line, self.text)
    }
}

impl std::error::Error for ParseError {}

/// One line: `CLIENT START KEY OPERATION ARGUMENTS -> ENDING`, where bytes are written as in
/// [`Escaped`], and the ending is `?` (unknown), `refused`, or `AT ANSWER [vVERSION]`.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} ", self.client, self.start, Escaped(&self.key))?;
        match &self.operation {
            Operation::Get => f.write_str("get")?,
            Operation::Look(Sees::Session) => f.write_str("look")?,
            Operation::Look(Sees::Bounded(span)) => write!(f, "look {span}")?,
            Operation::Put(value) => write!(f, "put {}", Escaped(value))?,
            Operation::PutHash(value) => write!(f, "puthash {}", Escaped(value))?,
            Operation::Delete => f.write_str("delete")?,
            Operation::Append(value) => write!(f, "append {}", Escaped(value))?,
            Operation::CompareAndSwap { expected: Expected::Value(expected), value } => {
                write!(f, "cas {} {}", Escaped(expected), Escaped(value))?;
            }
            Operation::CompareAndSwap { expected: Expected::Version(version), value } => {
                write!(f, "cas v{version} {}", Escaped(value))?;
            }
        }
        f.write_str(" -> ")?;
        match &self.ending {
            Ending::Unknown => f.write_char('?'),
            Ending::Refused => f.write_str("refused"),
            Ending::Answered { at, answer, version } => {
                write!(f, "{at} ")?;
                match answer {
                    Answer::Value(Some(value)) => write!(f, "{}", Escaped(value))?,
                    Answer::Value(None) => f.write_str("none")?,
                    Answer::Done => f.write_str("done")?,
                    Answer::Deleted(true) => f.write_str("deleted")?,
                    Answer::Deleted(false) => f.write_str("absent")?,
                    Answer::Appended(len) => write!(f, "appended {len}")?,
                    Answer::Swapped(true) => f.write_str("swapped")?,
                    Answer::Swapped(false) => f.write_str("different")?,
                }
                if let Some(version) = version {
                    write!(f, " v{version}")?;
                }
                Ok(())
            }
        }
    }
}

/// Bytes as one word of text: `=`, then each byte as itself where it is a printable character of
/// ASCII other than space and `%`, else as `%` and two hexadecimal digits.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('=')?;
        for byte in self.0 {
            if byte.is_ascii_graphic() && *byte != b'%' {
                f.write_char(char::from(*byte))?;
            } else {
                write!(f, "%{byte:02x}")?;
            }
        }
        Ok(())
    }
}

fn unescape(word: &str) -> Option<Bytes> {
    let mut rest = word.strip_prefix('=')?.bytes();
    let mut bytes = Vec::with_capacity(word.len());
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push((high * 16 + low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    Some(Bytes::from(bytes))
}

fn parse_call(line: &str) -> Option<Call> {
    let (asked, ended) = line.split_once(" -> ")?;
    let asked: Vec<&str> = asked.split(' ').collect();
    let (head, operation) = asked.split_at_checked(3)?;
    let operation = match operation {
        ["get"] => Operation::Get,
        ["look"] => Operation::Look(Sees::Session),
        ["look", span] => Operation::Look(Sees::Bounded(span.parse().ok()?)),
        ["put", value] => Operation::Put(unescape(value)?),
        ["puthash", value] => Operation::PutHash(unescape(value)?),
        ["delete"] => Operation::Delete,
        ["append", value] => Operation::Append(unescape(value)?),
        ["cas", expected, value] => {
            let expected = match expected.strip_prefix('v') {
                Some(version) => Expected::Version(version.parse().ok()?),
                None => Expected::Value(unescape(expected)?),
            };
            Operation::CompareAndSwap { expected, value: unescape(value)? }
        }
        _ => return None,
    };
    let [client, start, key] = head else { return None };
    Some(Call {
        client: client.parse().ok()?,
        start: start.parse().ok()?,
        key: unescape(key)?,
        operation,
        ending: parse_ending(ended)?,
    })
}

fn parse_ending(text: &str) -> Option<Ending> {
    if text == "?" {
        return Some(Ending::Unknown);
    }
    if text == "refused" {
        return Some(Ending::Refused);
    }
    let mut words: Vec<&str> = text.split(' ').collect();
    let version = match words.last()?.strip_prefix('v') {
        Some(version) => Some(version.parse().ok()?),
        None => None,
    };
    if version.is_some() {
        words.pop();
    }
    let (at, answer) = words.split_first()?;
    let answer = match answer {
        ["none"] => Answer::Value(None),
        ["done"] => Answer::Done,
        ["deleted"] => Answer::Deleted(true),
        ["absent"] => Answer::Deleted(false),
        ["appended", len] => Answer::Appended(len.parse().ok()?),
        ["swapped"] => Answer::Swapped(true),
        ["different"] => Answer::Swapped(false),
        [value] => Answer::Value(Some(unescape(value)?)),
        _ => return None,
    };
    Some(Ending::Answered { at: at.parse().ok()?, answer, version })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
        1 10 =a put =x -> 20 done v1\n\
        2 12 =a get -> 30 =x v1\n\
        2 31 =%00%20b puthash = -> ?\n\
        3 40 =a append =%25; -> 41 appended 3\n\
        1 50 =a cas v4 =y -> 60 different v9\n\
        1 61 =a cas =x =y -> refused\n\
        1 62 =a look -> 63 none v0\n\
        1 64 =a look 250 -> 65 =y\n\
        1 62 =a delete -> 63 absent\n\
        1 64 =a get -> 65 none\n";

    #[test]
    fn a_history_survives_its_text() {
        let history = History::from_text(TEXT).unwrap();
        assert_eq!(history.to_text(), TEXT);
        assert_eq!(history.calls()[2].key, Bytes::from_static(b"\0 b"));
        assert_eq!(history.by_key().len(), 2);
    }

    #[test]
    fn a_line_that_is_no_call_is_named() {
        let wrong = ["1 2 a get -> ?", "1 2 =a fly -> ?", "1 2 =a get", "1 2 =%4 get -> ?", "->"];
        for line in wrong {
            let error = History::from_text(&format!("# first\n{line}\n")).unwrap_err();
            assert_eq!((error.line, error.text.as_str()), (2, line));
        }
    }

    #[test]
    fn elements_twice_or_from_nowhere_are_found() {
        let good = "1 1 =k append =a; -> 2 appended 2\n2 1 =k append =b; -> ?\n\
                    1 3 =k get -> 4 =b;a;\n";
        History::from_text(good).unwrap().check_elements().unwrap();
        for (bad, why) in [("=a;b;a;", "twice"), ("=a;c;", "nobody")] {
            let text = good.replace("=b;a;", bad);
            let error = History::from_text(&text).unwrap().check_elements().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let refused = good.replace("-> ?", "-> refused");
        let error = History::from_text(&refused).unwrap().check_elements().unwrap_err();
        assert!(error.contains("refused"), "{error}");
    }
}
