//! What commands print: plain text for people, one JSON object a line for programs.

use std::io::{self, Write};

use base64::Engine as _;
use serde_json::Value;

use crate::failure::Failure;

/// Prints bytes as they are and, unless `raw`, a newline behind them.
pub(crate) fn print_bytes(bytes: &[u8], raw: bool) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let written =
        out.write_all(bytes).and_then(|()| if raw { Ok(()) } else { out.write_all(b"\n") });
    finish(written.and_then(|()| out.flush()))
}

/// Prints a line of text, or several.
pub(crate) fn print_text(text: &str) -> Result<(), Failure> {
    print_bytes(text.trim_end_matches('\n').as_bytes(), false)
}

/// Prints one JSON object on a line.
pub(crate) fn print_json(object: &Value) -> Result<(), Failure> {
    print_bytes(object.to_string().as_bytes(), false)
}

/// Bytes as JSON: a string where they are UTF-8, else `{"base64": ...}`.
pub(crate) fn json_bytes(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => {
            let text = base64::engine::general_purpose::STANDARD.encode(bytes);
            serde_json::json!({ "base64": text })
        }
    }
}

/// A table without lines, its columns two spaces apart.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A reader that closed its end wants no more: that is no failure of the command, but it ends it.
fn finish(written: io::Result<()>) -> Result<(), Failure> {
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::printed()),
        Err(error) => Err(Failure::error("output", format!("cannot write the answer: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_text_become_base64() {
        assert_eq!(json_bytes(b"plain"), serde_json::json!("plain"));
        assert_eq!(json_bytes(&[0xff, 0x00]), serde_json::json!({ "base64": "/wA=" }));
    }

    #[test]
    fn a_table_aligns_its_columns() {
        let rows = [["1".to_owned(), "a".to_owned()], ["22".to_owned(), "b".to_owned()]];
        assert_eq!(table(["n", "name"], &rows), "n   name\n1   a\n22  b\n");
    }
}
