package esl

import (
	"bytes"
	"fmt"
	"io"
	"time"
)

// Bounds of what is read from a switch, in bytes.
const (
	// DefaultMaxFrame bounds one frame's body. A registration is about 700 bytes
	// of xmlstatus, so this is a profile with some 90,000 phones.
	DefaultMaxFrame = 64 << 20

	// maxHeader bounds a frame's header block. The largest ones are connect
	// replies, 7 kB of channel data plus the variables of a dialplan.
	maxHeader = 1 << 20

	readBuffer = 64 << 10  // of a client, which may see bursts
	callBuffer = 8 << 10   // of one call of a server, which has many
	keepBuffer = 256 << 10 // a buffer that grew larger is given back
)

// kind is a frame's content type as far as we care.
type kind uint8

const (
	kindOther      kind = iota // log/data, text/event-json, whatever comes next
	kindEvent                  // text/event-plain
	kindReply                  // command/reply
	kindAPI                    // api/response
	kindDisconnect             // text/disconnect-notice
	kindAuth                   // auth/request
	kindRude                   // text/rude-rejection
)

// frame is one message of the switch. Both slices belong to the reader and hold
// until its next call.
type frame struct {
	kind   kind
	header []byte // without the blank line
	body   []byte
}

// frameReader cuts a byte stream into frames. It never allocates what a peer
// merely announces: the buffer grows with what arrived.
type frameReader struct {
	src io.Reader
	max int // of a body

	// setDeadline, when not nil, is called before each read: mid tells whether a
	// frame has begun, whose rest must then come in time, or whether the line is
	// idle, which it may be for ever.
	setDeadline func(mid bool)

	buf  []byte
	r, w int // unread bytes are buf[r:w]

	// What is known of the frame that starts at r.
	scan       int // offset of the header line that is not complete yet
	haveHeader bool
	kind       kind
	headerLen  int
	bodyAt     int // offset of the body
	bodyLen    int // -1: no Content-Length seen
}

// newFrameReader starts with a buffer of size bytes; a body is at most maxFrame.
func newFrameReader(src io.Reader, maxFrame, size int) *frameReader {
	if maxFrame <= 0 {
		maxFrame = DefaultMaxFrame
	}
	return &frameReader{src: src, max: maxFrame, buf: make([]byte, size), bodyLen: -1}
}

// next returns the next frame, reading as long as it takes. Its error is
// ErrProtocol, io.EOF between two frames, io.ErrUnexpectedEOF within one, or the
// source's.
func (f *frameReader) next() (frame, error) {
	for {
		fr, ok, err := f.buffered()
		if ok || err != nil {
			return fr, err
		}
		if err := f.fill(); err != nil {
			return frame{}, err
		}
	}
}

// buffered returns the next frame if it has arrived completely, without reading.
func (f *frameReader) buffered() (fr frame, ok bool, err error) {
	if !f.haveHeader {
		if ok, err := f.parseHeader(); !ok || err != nil {
			return frame{}, false, err
		}
	}
	end := f.r + f.bodyAt + f.bodyLen
	if f.w < end {
		return frame{}, false, nil
	}
	fr = frame{kind: f.kind, header: f.buf[f.r : f.r+f.headerLen], body: f.buf[f.r+f.bodyAt : end]}
	f.r, f.scan, f.haveHeader, f.kind, f.bodyLen = end, 0, false, kindOther, -1
	return fr, true, nil
}

// parseHeader looks for the blank line, going on where it stopped last time.
func (f *frameReader) parseHeader() (ok bool, err error) {
	for f.scan == 0 && f.r < f.w && (f.buf[f.r] == '\n' || f.buf[f.r] == '\r') {
		f.r++ // blank lines between frames mean nothing
	}
	data := f.buf[f.r:f.w]
	for {
		i := bytes.IndexByte(data[f.scan:], '\n')
		if i < 0 {
			if len(data) > maxHeader {
				return false, fmt.Errorf("%w: header block of more than %d bytes", ErrProtocol, maxHeader)
			}
			return false, nil
		}
		line := data[f.scan : f.scan+i]
		if n := len(line); n > 0 && line[n-1] == '\r' {
			line = line[:n-1]
		}
		if len(line) == 0 {
			f.headerLen, f.bodyAt, f.haveHeader = f.scan, f.scan+i+1, true
			f.bodyLen = max(f.bodyLen, 0)
			return true, nil
		}
		if f.scan += i + 1; f.scan > maxHeader {
			return false, fmt.Errorf("%w: header block of more than %d bytes", ErrProtocol, maxHeader)
		}
		if line[0]|0x20 == 'c' {
			if err := f.headerLine(line); err != nil {
				return false, err
			}
		}
	}
}

func (f *frameReader) headerLine(line []byte) error {
	name, value, ok := bytes.Cut(line, []byte(":"))
	switch {
	case !ok:
	case bytes.EqualFold(name, []byte("Content-Length")):
		n, err := f.length(bytes.TrimSpace(value))
		if err != nil {
			return err
		}
		if f.bodyLen >= 0 && f.bodyLen != n {
			return fmt.Errorf("%w: Content-Length %d and %d in one frame", ErrProtocol, f.bodyLen, n)
		}
		f.bodyLen = n
	case bytes.EqualFold(name, []byte("Content-Type")):
		f.kind = kindOf(bytes.TrimSpace(value))
	}
	return nil
}

// length reads a Content-Length: digits only, so no sign, and not over the bound.
func (f *frameReader) length(value []byte) (int, error) {
	n := 0
	for _, c := range value {
		if c < '0' || c > '9' {
			return 0, fmt.Errorf("%w: Content-Length %s is no number", ErrProtocol, shorten(string(value)))
		}
		if n = n*10 + int(c-'0'); n > f.max {
			return 0, fmt.Errorf("%w: Content-Length %s, at most %d is allowed", ErrProtocol, shorten(string(value)), f.max)
		}
	}
	if len(value) == 0 {
		return 0, fmt.Errorf("%w: Content-Length is empty", ErrProtocol)
	}
	return n, nil
}

func kindOf(contentType []byte) kind {
	switch string(contentType) { // the compiler does not allocate here
	case "text/event-plain":
		return kindEvent
	case "command/reply":
		return kindReply
	case "api/response":
		return kindAPI
	case "text/disconnect-notice":
		return kindDisconnect
	case "auth/request":
		return kindAuth
	case "text/rude-rejection":
		return kindRude
	}
	return kindOther
}

// fill makes room and reads once.
func (f *frameReader) fill() error {
	switch {
	case f.r == f.w:
		f.r, f.w = 0, 0
		if len(f.buf) > keepBuffer {
			f.buf = make([]byte, readBuffer)
		}
	case f.r > 0 && f.w > len(f.buf)/2:
		f.w = copy(f.buf, f.buf[f.r:f.w])
		f.r = 0
	case f.w == len(f.buf):
		grown := make([]byte, 2*len(f.buf))
		f.w = copy(grown, f.buf[f.r:f.w])
		f.r, f.buf = 0, grown
	}
	if f.setDeadline != nil {
		f.setDeadline(f.r < f.w)
	}
	for range 100 {
		n, err := f.src.Read(f.buf[f.w:])
		f.w += n
		switch {
		case n > 0:
			return nil // an error will come again
		case err == io.EOF && f.r < f.w:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
	return io.ErrNoProgress
}

// readDeadline returns a setDeadline that gives a begun frame limit to complete.
// Each read renews it: a large reply on a slow line is no fault.
func readDeadline(c interface{ SetReadDeadline(time.Time) error }, limit time.Duration) func(bool) {
	armed := false
	return func(mid bool) {
		switch {
		case mid:
			armed = c.SetReadDeadline(time.Now().Add(limit)) == nil
		case armed:
			_ = c.SetReadDeadline(time.Time{})
			armed = false
		}
	}
}
