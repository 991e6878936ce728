//! YAML text to a tree of scalars, lists and maps, each with its line.
//!
//! Built from saphyr-parser's events, not with serde: serde stops at the first problem, and a loader such as saphyr's
//! own `MarkedYaml` stops at the first duplicate key. Scalars keep their text, so that `name: 1.10` stays `1.10`.
//! Depth and size are bounded while reading, aliases included (they share their anchor's node, and count in full).

use std::collections::HashMap;
use std::rc::Rc;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};

/// Bytes of a file. A ConfigMap holds 1 MiB; ten thousand endpoints are half of that.
pub(super) const MAX_BYTES: usize = 10 << 20;
/// Levels of lists and maps; a valid file has seven.
const MAX_DEPTH: usize = 64;
/// Scalars, lists and maps, those behind aliases counted each time.
const MAX_NODES: usize = 1_000_000;

/// A value and where it starts.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) line: usize,
    pub(super) value: Value,
    /// Nodes in it, itself included.
    nodes: usize,
    /// Levels in it, itself included.
    height: usize,
}

#[derive(Debug)]
pub(super) enum Value {
    /// `quoted` text is never a number, a bool or null.
    Scalar {
        text: String,
        quoted: bool,
    },
    List(Vec<Rc<Located>>),
    Map(Vec<Entry>),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) value: Rc<Located>,
}

/// Why there is no tree: text is not YAML, or not YAML for perch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoTree {
    pub(super) line: Option<usize>,
    pub(super) message: String,
}

impl NoTree {
    fn at(line: usize, message: impl Into<String>) -> Self {
        Self { line: Some(line), message: message.into() }
    }
}

/// A list or map that is being read.
struct Open {
    line: usize,
    anchor: usize,
    content: Content,
}

enum Content {
    List(Vec<Rc<Located>>),
    /// The key whose value comes next, with its line.
    Map(Vec<Entry>, Option<(String, usize)>),
}

/// Reads one document.
pub(super) fn read(text: &str) -> Result<Rc<Located>, NoTree> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    printable(text)?;
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| {
            let line = error.marker().line();
            let hint = match text.lines().nth(line.saturating_sub(1)) {
                Some(l) if l.trim_start_matches(' ').starts_with('\t') => "; indent with spaces, not tabs",
                _ => "",
            };
            NoTree::at(line, format!("not YAML: {} at column {}{hint}", error.info(), error.marker().col() + 1))
        })?;
        if builder.event(event, span.start.line())? {
            break;
        }
    }
    let nothing = || NoTree { line: None, message: "is empty; write at least listeners, routes and services".into() };
    builder.root.ok_or_else(nothing).and_then(|root| match &root.value {
        Value::Scalar { text, quoted: false } if is_null(text) => Err(nothing()),
        _ => Ok(root),
    })
}

/// YAML 1.2's core schema.
pub(super) fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// YAML allows no control characters; the parser would take NUL for the end and drop the rest without a word.
fn printable(text: &str) -> Result<(), NoTree> {
    let bad = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}');
    for (number, line) in text.split('\n').enumerate() {
        if let Some(c) = line.chars().find(|c| bad(*c)) {
            let name = if c == '\0' { "a NUL".to_owned() } else { format!("the control character U+{:04X}", c as u32) };
            return Err(NoTree::at(number + 1, format!("holds {name}; write plain text (is this a YAML file?)")));
        }
    }
    Ok(())
}

#[derive(Default)]
struct Builder {
    root: Option<Rc<Located>>,
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Located>>,
    nodes: usize,
    documents: usize,
}

impl Builder {
    /// Takes one event in; true at the end.
    fn event(&mut self, event: Event<'_>, line: usize) -> Result<bool, NoTree> {
        match event {
            Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
            Event::StreamEnd => return Ok(true),
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(NoTree::at(line, "a second document starts here; write one document per file"));
                }
            }
            Event::Alias(anchor) => {
                // An anchor is known once its node is complete: an alias inside its own anchor is not.
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(NoTree::at(line, "an alias of the value it stands in; write the value out"));
                };
                let nodes = node.nodes;
                self.put(node, nodes, line)?;
            }
            Event::Scalar(text, style, anchor, tag) => {
                let quoted = match tag {
                    None => style != ScalarStyle::Plain,
                    Some(tag) => known(&tag, line)? == "str" || style != ScalarStyle::Plain,
                };
                let value = Value::Scalar { text: text.into_owned(), quoted };
                self.close(Located { line, value, nodes: 1, height: 1 }, anchor, line)?;
            }
            Event::SequenceStart(anchor, tag) => self.start(Content::List(Vec::new()), anchor, tag.as_deref(), line)?,
            Event::MappingStart(anchor, tag) => {
                self.start(Content::Map(Vec::new(), None), anchor, tag.as_deref(), line)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(Open { line, anchor, content }) = self.open.pop() {
                    let (value, nodes, height) = match content {
                        Content::List(items) => {
                            let (nodes, height) = extent(items.iter());
                            (Value::List(items), nodes, height)
                        }
                        Content::Map(entries, _) => {
                            let (nodes, height) = extent(entries.iter().map(|e| &e.value));
                            (Value::Map(entries), nodes, height)
                        }
                    };
                    self.close(Located { line, value, nodes, height }, anchor, line)?;
                }
            }
        }
        Ok(false)
    }

    fn start(&mut self, content: Content, anchor: usize, tag: Option<&Tag>, line: usize) -> Result<(), NoTree> {
        if let Some(tag) = tag {
            known(tag, line)?;
        }
        if let Some(Open { content: Content::Map(_, None), .. }) = self.open.last() {
            return Err(NoTree::at(line, "a list or map stands where a key must; write a plain word"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep(line));
        }
        self.open.push(Open { line, anchor, content });
        Ok(())
    }

    /// A node is complete.
    fn close(&mut self, node: Located, anchor: usize, line: usize) -> Result<(), NoTree> {
        let node = Rc::new(node);
        if anchor > 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        // Its children were counted when they came.
        self.put(node, 1, line)
    }

    /// Puts a complete node where it belongs; `added` nodes come with it.
    fn put(&mut self, node: Rc<Located>, added: usize, line: usize) -> Result<(), NoTree> {
        self.nodes = self.nodes.saturating_add(added);
        if self.nodes > MAX_NODES {
            return Err(NoTree::at(
                line,
                format!("more than {MAX_NODES} values, those behind aliases included; write a smaller file"),
            ));
        }
        if self.open.len() + node.height > MAX_DEPTH {
            return Err(too_deep(line));
        }
        match self.open.last_mut().map(|open| &mut open.content) {
            None => self.root = Some(node),
            Some(Content::List(items)) => items.push(node),
            Some(Content::Map(entries, pending)) => match pending.take() {
                Some((key, line)) => entries.push(Entry { key, line, value: node }),
                None => match &node.value {
                    Value::Scalar { text, .. } => *pending = Some((text.clone(), line)),
                    Value::List(_) | Value::Map(_) => {
                        return Err(NoTree::at(line, "a list or map stands where a key must; write a plain word"));
                    }
                },
            },
        }
        Ok(())
    }
}

fn too_deep(line: usize) -> NoTree {
    NoTree::at(line, format!("more than {MAX_DEPTH} levels deep; no key of perch is"))
}

fn extent<'a>(children: impl Iterator<Item = &'a Rc<Located>>) -> (usize, usize) {
    let (nodes, height) =
        children.fold((0_usize, 0), |(nodes, height), c| (nodes.saturating_add(c.nodes), height.max(c.height)));
    (nodes.saturating_add(1), height + 1)
}

/// A tag of the core schema, by its short name.
fn known(tag: &Tag, line: usize) -> Result<&str, NoTree> {
    match (tag.is_yaml_core_schema(), tag.suffix.as_ref()) {
        (true, name @ ("str" | "int" | "float" | "bool" | "null" | "seq" | "map")) => Ok(name),
        _ => Err(NoTree::at(line, format!("the tag {:?} has no meaning here; remove it", tag.suffix))),
    }
}
