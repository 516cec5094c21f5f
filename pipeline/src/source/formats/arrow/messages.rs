//! The messages of an Arrow stream, and the batches in them.
//!
//! Arrow's own reader trusts the lengths in a message and panics on types that it does not know. Here each message is read as
//! its bytes come, its lengths are bounded before it is decoded, and a panic is an error. Arrow's decoder checks the values
//! themselves: offsets, and that text is UTF-8.
//!
//! Memory: one message, and the dictionaries.

use std::collections::HashMap;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::{RecordBatchDecoder, read_dictionary};
use arrow::ipc::{Endianness, Message, MessageHeader, root_as_message};

use super::super::super::error::SourceError;
use super::super::super::files::{ByteCount, InputFile, open};

/// What files begin with, before their stream.
const FILE_MAGIC: &[u8; 8] = b"ARROW1\0\0";
/// Maximum padding behind it.
const PADDING_BYTES_MAX: usize = 128;
const FEATHER_1_MAGIC: &[u8; 4] = b"FEA1";

/// Maximum bytes of a message's description: the schema, or where the columns of a batch are.
const DESCRIPTION_BYTES_MAX: usize = 64 << 20;
/// Maximum bytes of a batch, packed and unpacked.
const BATCH_BYTES_MAX: u64 = 4 << 30;

/// A stream of messages.
pub(super) struct ArrowMessages {
    path: String,
    stream: Box<dyn Read + Send>,
    schema: Option<SchemaRef>,
    dictionaries: HashMap<i64, ArrayRef>,
    /// The first four bytes of the first message, until they are read.
    head: Option<[u8; 4]>,
    is_file: bool,
    ended: bool,
}

/// The length of a message's description, or the end of the stream.
enum Framed {
    Description(usize),
    End,
}

impl ArrowMessages {
    pub(super) fn open(file: &InputFile, count: &ByteCount) -> Result<Self, SourceError> {
        let fail = |e: std::io::Error| SourceError::read(&file.source, e);
        let not =
            |problem: &str| SourceError::NotTheFormat { path: file.source.clone(), problem: problem.into() };
        let mut stream = open(file, count)?;
        let mut head = [0; 4];
        stream.read_exact(&mut head).map_err(|_| not("is not Arrow: it is shorter than one message"))?;
        let is_file = FILE_MAGIC.starts_with(&head);
        if &head == FEATHER_1_MAGIC {
            return Err(not("is Feather of version 1; write it anew, as version 2"));
        }
        if is_file {
            let mut rest = [0; 4];
            stream.read_exact(&mut rest).map_err(fail)?;
            if rest != FILE_MAGIC[4..] {
                return Err(not("is not Arrow"));
            }
            // Some writers pad the beginning to more than its eight bytes.
            head = [0; 4];
            for _ in 0..PADDING_BYTES_MAX / 4 {
                stream.read_exact(&mut head).map_err(fail)?;
                if head != [0; 4] {
                    break;
                }
            }
        }
        Ok(Self {
            path: file.source.clone(),
            stream,
            schema: None,
            dictionaries: HashMap::new(),
            head: Some(head),
            is_file,
            ended: false,
        })
    }

    /// The schema, which is the first message.
    pub(super) fn schema(&mut self) -> Result<SchemaRef, SourceError> {
        self.message()?;
        self.schema.clone().ok_or_else(|| self.not("is not Arrow: it does not begin with a schema"))
    }

    /// The next batch, or none at the end.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>, SourceError> {
        while !self.ended {
            if let Some(batch) = self.message()? {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    fn not(&self, problem: &str) -> SourceError {
        SourceError::NotTheFormat { path: self.path.clone(), problem: problem.into() }
    }

    fn fail(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SourceError {
        SourceError::read(&self.path, error)
    }

    /// Reads one message; returns its batch, if it has one.
    fn message(&mut self) -> Result<Option<RecordBatch>, SourceError> {
        let length = match self.framed()? {
            Framed::End => {
                self.ended = true;
                return Ok(None);
            }
            Framed::Description(length) => length,
        };
        let unknown = |this: &Self| match this.schema {
            None => this.not("is not Arrow"),
            Some(_) => this.fail("a message cannot be understood"),
        };
        if length > DESCRIPTION_BYTES_MAX {
            return Err(unknown(self));
        }
        let description = self.take(length as u64)?;
        let Ok(message) = root_as_message(&description) else { return Err(unknown(self)) };
        let Ok(length) = u64::try_from(message.bodyLength()) else { return Err(unknown(self)) };
        if length > BATCH_BYTES_MAX {
            return Err(self.too_large());
        }
        let body = self.take(length)?;
        if unpacked_bytes(&message, &body) > BATCH_BYTES_MAX {
            return Err(self.too_large());
        }
        let read = catch_unwind(AssertUnwindSafe(|| self.read(&message, &Buffer::from_vec(body))));
        match read {
            Ok(Ok(batch)) => Ok(batch),
            Ok(Err(error)) => Err(self.fail(error)),
            Err(_) => Err(self.fail("it has a type or a layout that this program does not know")),
        }
    }

    fn too_large(&self) -> SourceError {
        self.fail(format!("a batch has more than {} GiB; write it in smaller ones", BATCH_BYTES_MAX >> 30))
    }

    fn read(&mut self, message: &Message<'_>, body: &Buffer) -> Result<Option<RecordBatch>, ArrowError> {
        let wrong = |problem: &str| Err(ArrowError::IpcError(problem.into()));
        let Some(schema) = self.schema.clone() else {
            if let Some(schema) = message.header_as_schema() {
                if schema.endianness() != Endianness::Little {
                    return wrong("its numbers have their largest byte first");
                }
                self.schema = Some(fb_to_schema(schema).into());
            }
            return Ok(None);
        };
        let version = message.version();
        match message.header_type() {
            MessageHeader::RecordBatch => match message.header_as_record_batch() {
                Some(batch) => {
                    let decoder =
                        RecordBatchDecoder::try_new(body, batch, schema, &self.dictionaries, &version)?;
                    decoder.read_record_batch().map(Some)
                }
                None => wrong("a batch without a description"),
            },
            MessageHeader::DictionaryBatch => match message.header_as_dictionary_batch() {
                Some(dictionary) => {
                    read_dictionary(body, dictionary, &schema, &mut self.dictionaries, &version)?;
                    Ok(None)
                }
                None => wrong("a dictionary without a description"),
            },
            MessageHeader::NONE => Ok(None),
            _ => wrong("a message that is no batch"),
        }
    }

    /// The next `length` bytes of the stream. Memory grows as they come, whatever the length says.
    fn take(&mut self, length: u64) -> Result<Vec<u8>, SourceError> {
        let mut bytes = Vec::new();
        let read = self.stream.by_ref().take(length).read_to_end(&mut bytes);
        match read.map_err(|e| SourceError::read(&self.path, e))? as u64 {
            read if read == length => Ok(bytes),
            _ => Err(self.fail("it ends inside a message")),
        }
    }

    /// Reads the frame of the next message: a mark, which old writers leave out, and a length.
    fn framed(&mut self) -> Result<Framed, SourceError> {
        let Some(mut word) = self.word()? else {
            // A stream may end without a mark, a file has one before its footer.
            return if self.is_file { Err(self.fail("it ends before its footer")) } else { Ok(Framed::End) };
        };
        if word == u32::MAX {
            let Some(length) = self.word()? else { return Err(self.fail("it ends inside a message")) };
            word = length;
        }
        Ok(if word == 0 { Framed::End } else { Framed::Description(word as usize) })
    }

    /// The next four bytes; none at the end of the stream.
    fn word(&mut self) -> Result<Option<u32>, SourceError> {
        if let Some(head) = self.head.take() {
            return Ok(Some(u32::from_le_bytes(head)));
        }
        let mut word = Vec::with_capacity(4);
        self.stream.by_ref().take(4).read_to_end(&mut word).map_err(|e| SourceError::read(&self.path, e))?;
        match word.first_chunk::<4>() {
            Some(word) => Ok(Some(u32::from_le_bytes(*word))),
            None if word.is_empty() => Ok(None),
            None => Err(self.fail("it ends inside a message")),
        }
    }
}

/// The bytes that the packed buffers of a message say they have; 0 if none is packed.
fn unpacked_bytes(message: &Message<'_>, body: &[u8]) -> u64 {
    let dictionary = || message.header_as_dictionary_batch().and_then(|dictionary| dictionary.data());
    let batch = message.header_as_record_batch().or_else(dictionary);
    let packed = batch.filter(|batch| batch.compression().is_some()).and_then(|batch| batch.buffers());
    let length = |at: i64| {
        let prefix = body.get(usize::try_from(at).ok()?..)?.first_chunk::<8>()?;
        // -1 means that the buffer is not packed.
        u64::try_from(i64::from_le_bytes(*prefix)).ok()
    };
    let lengths = packed.iter().flatten().filter(|buffer| buffer.length() > 0);
    lengths.filter_map(|buffer| length(buffer.offset())).fold(0, u64::saturating_add)
}
