package send_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"github.com/plinqx/hypha/internal/hook"
	"github.com/plinqx/hypha/internal/send/receivertest"
)

// TestHostileReceiversHTTP2 is the same over HTTP/2, where a connection is
// shared and lives on between attempts. Few at a time: a flood of small frames
// keeps a core busy until it has come to its bound, which must not take it the
// timeout.
func TestHostileReceiversHTTP2(t *testing.T) { playHostile(t, hostileHTTP2(), 4) }

// hostileHTTP2 is what a receiver can do with frames.
func hostileHTTP2() []hostile {
	type frames = receivertest.Frames
	forever := receivertest.Forever
	answers := func(do func(f *frames, n uint32) error) *receivertest.HTTP2 { return &receivertest.HTTP2{Answer: do} }
	begins := func(do func(f *frames) error) *receivertest.HTTP2 { return &receivertest.HTTP2{Begin: do} }
	hold := func(f *frames) error { <-f.Ended; return io.EOF }
	head := func(f *frames, n uint32) error { return f.Head(n, true, ":status", "200") }
	kib := bytes.Repeat([]byte("body"), 256)
	huge := bytes.Repeat([]byte("x"), 16<<20)
	wide := []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}}
	p, s, c, tm := hook.FailureProtocol, hook.FailureStatus, hook.FailureConnect, hook.FailureTimeout
	return []hostile{
		{name: "a good one", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(head(f, n), f.WriteData(n, true, []byte("ok")))
		}), status: 200, kept: "ok"},

		// It never answers.
		{name: "silence", http2: answers(func(*frames, uint32) error { return nil }), silent: true, kind: tm, message: late},
		{name: "silence from the beginning", http2: begins(hold), silent: true, kind: tm, message: late},
		{name: "a window that stays shut", http2: &receivertest.HTTP2{Settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}}, silent: true, kind: tm, message: late},
		{name: "no room for any stream", http2: &receivertest.HTTP2{Settings: []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: 0}}}, silent: true, kind: tm, message: late, ahead: noRoom},
		{name: "no room for any head", http2: &receivertest.HTTP2{Settings: []http2.Setting{{ID: http2.SettingMaxHeaderListSize, Val: 1}}}, silent: true, kind: tm, message: late, ahead: noRoom},
		{name: "frames of no size", http2: &receivertest.HTTP2{Settings: []http2.Setting{{ID: http2.SettingMaxFrameSize, Val: 0}}}, kind: p, message: notHTTP2},
		{name: "it reads nothing, its windows wide open", http2: &receivertest.HTTP2{Settings: wide, Early: true, Deaf: true, Answer: func(f *frames, _ uint32) error {
			return errors.Join(f.WriteWindowUpdate(0, 1<<30), hold(f))
		}}, body: huge, silent: true, kind: tm, message: late},
		{name: "it answers, and reads nothing, its windows wide open", http2: &receivertest.HTTP2{Settings: wide, Early: true, Deaf: true, Answer: func(f *frames, n uint32) error {
			return errors.Join(f.WriteWindowUpdate(0, 1<<30), head(f, n), f.Pause(100), forever(func() error { return f.WriteData(n, false, kib) }))
		}}, body: huge, status: 200, kept: "bodybody"},
		{name: "it answers an error before all came", http2: &receivertest.HTTP2{Early: true, Answer: func(f *frames, n uint32) error { return f.Status(n, "413", false) }}, body: huge, kind: s, status: 413, message: "answered 413"},

		// Bodies.
		{name: "endless data", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(head(f, n), forever(func() error { return f.WriteData(n, false, kib) }))
		}), status: 200, kept: "bodybody"},
		{name: "endless data of an error", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(f.Status(n, "500", true), forever(func() error { return f.WriteData(n, false, kib) }))
		}), kind: s, status: 500, message: "answered 500"},
		{name: "endless empty data", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(head(f, n), forever(func() error { return f.WriteData(n, false, nil) }))
		}), status: 200},
		{name: "endless padding", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(head(f, n), forever(func() error { return f.WriteDataPadded(n, false, nil, make([]byte, 255)) }))
		}), status: 200},
		{name: "data of a byte, endless", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(head(f, n), forever(func() error { return f.WriteData(n, false, []byte("x")) }))
		}), status: 200, kept: "x"},
		{name: "a body that never comes", http2: answers(func(f *frames, n uint32) error { return head(f, n) }), status: 200},
		{name: "more than its length", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(f.Head(n, true, ":status", "200", "content-length", "2"), f.WriteData(n, true, []byte("okok")))
		}), status: 200},
		{name: "less than its length", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(f.Head(n, true, ":status", "200", "content-length", "9"), f.WriteData(n, true, []byte("ok")))
		}), status: 200, kept: "ok"},
		{name: "lengths that disagree", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(f.Head(n, true, ":status", "200", "content-length", "2", "content-length", "3"), f.WriteData(n, true, []byte("ok")))
		}), status: 200},
		{name: "a reset in the body", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(head(f, n), f.WriteData(n, false, []byte("ok")), f.WriteRSTStream(n, http2.ErrCodeInternal))
		}), status: 200, kept: ""},
		{name: "endless trailers", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(head(f, n), f.WriteHeaders(http2.HeadersFrameParam{StreamID: n, EndStream: true, BlockFragment: receivertest.Block("x", "y")}),
				forever(func() error { return f.WriteContinuation(n, false, receivertest.Block("x", "y")) }))
		}), status: 200},

		// Heads.
		{name: "one huge header", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(
				f.WriteHeaders(http2.HeadersFrameParam{StreamID: n, EndStream: true, BlockFragment: receivertest.Block(":status", "200")}),
				inParts(f, n, receivertest.Block("x", strings.Repeat("y", 70<<10))))
		}), kind: p},
		{name: "many headers", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(
				f.WriteHeaders(http2.HeadersFrameParam{StreamID: n, EndStream: true, BlockFragment: receivertest.Block(":status", "200")}),
				inParts(f, n, bytes.Repeat(receivertest.Block("x", "y"), 2100)))
		}), kind: p},
		{name: "a bomb in the table of headers", http2: answers(func(f *frames, n uint32) error {
			// One entry of 4000 bytes, and thousands of references to it.
			entry := append([]byte{0x40, 1, 'x', 0x7f, 0xa1, 0x1e}, bytes.Repeat([]byte("y"), 4000)...)
			return errors.Join(
				f.WriteHeaders(http2.HeadersFrameParam{StreamID: n, EndStream: true, BlockFragment: append(receivertest.Block(":status", "200"), entry...)}),
				inParts(f, n, bytes.Repeat([]byte{0xbe}, 60<<10)))
		}), kind: p},
		{name: "a table that grows without end", http2: answers(func(f *frames, n uint32) error {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: n, EndStream: true, EndHeaders: true, BlockFragment: []byte{0x3f, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x88}})
		}), kind: p},
		{name: "a reference to nothing", http2: answers(func(f *frames, n uint32) error {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: n, EndStream: true, EndHeaders: true, BlockFragment: []byte{0xff, 0x7f}})
		}), kind: p, message: notHTTP2},
		{name: "endless continuations", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(
				f.WriteHeaders(http2.HeadersFrameParam{StreamID: n, BlockFragment: receivertest.Block(":status", "200")}),
				forever(func() error {
					return f.WriteContinuation(n, false, receivertest.Block("x", strings.Repeat("y", 8<<10)))
				}))
		}), kind: p},
		{name: "endless empty continuations", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(
				f.WriteHeaders(http2.HeadersFrameParam{StreamID: n, BlockFragment: receivertest.Block(":status", "200")}),
				forever(func() error { return f.WriteContinuation(n, false, nil) }))
		}), kind: p},
		{name: "a head without an end", http2: answers(func(f *frames, n uint32) error {
			return f.WriteHeaders(http2.HeadersFrameParam{StreamID: n, BlockFragment: receivertest.Block(":status", "200")})
		}), silent: true, kind: tm, message: late},
		{name: "a head without a status", http2: answers(func(f *frames, n uint32) error { return f.Head(n, false, "x", "y") }), kind: p, message: notHTTP2},
		{name: "two statuses", http2: answers(func(f *frames, n uint32) error { return f.Head(n, false, ":status", "200", ":status", "500") }), kind: p, message: notHTTP2},
		{name: "a status after a header", http2: answers(func(f *frames, n uint32) error { return f.Head(n, false, "x", "y", ":status", "200") }), kind: p, message: notHTTP2},
		{name: "a status that is no number", http2: answers(func(f *frames, n uint32) error { return f.Status(n, "ok", false) }), kind: p, message: notHTTP2},
		{name: "a status of four digits", http2: answers(func(f *frames, n uint32) error { return f.Status(n, "2000", false) }), kind: p, message: "the answer's status is not of three digits"},
		{name: "a negative status", http2: answers(func(f *frames, n uint32) error { return f.Status(n, "-200", false) }), kind: p, message: "the answer's status is not of three digits"},
		{name: "status 000", http2: answers(func(f *frames, n uint32) error { return f.Status(n, "000", false) }), kind: s, message: "answered 000"},
		{name: "a header in capitals", http2: answers(func(f *frames, n uint32) error { return f.Head(n, false, ":status", "200", "X", "y") }), kind: p, message: notHTTP2},
		{name: "a line break in a header", http2: answers(func(f *frames, n uint32) error { return f.Head(n, false, ":status", "200", "x", "y\r\nz: 1") }), kind: p, message: notHTTP2},
		{name: "a header of a request", http2: answers(func(f *frames, n uint32) error { return f.Head(n, false, ":status", "200", ":path", "/") }), kind: p, message: notHTTP2},
		{name: "a header of the connection", http2: answers(func(f *frames, n uint32) error {
			return f.Head(n, false, ":status", "200", "transfer-encoding", "chunked", "connection", "close")
		}), status: 200},
		{name: "cookies", http2: answers(func(f *frames, n uint32) error { return f.Head(n, false, ":status", "200", "set-cookie", "a=b") }), status: 200},
		{name: "a redirect to itself", http2: answers(func(f *frames, n uint32) error { return f.Head(n, false, ":status", "308", "location", "/") }), kind: s, status: 308, message: "answered 308 Permanent Redirect: redirects are not followed"},

		// Interim answers.
		{name: "endless 100", http2: answers(func(f *frames, n uint32) error { return forever(func() error { return f.Status(n, "100", true) }) }), kind: p},
		{name: "endless 103", http2: answers(func(f *frames, n uint32) error {
			return forever(func() error { return f.Head(n, true, ":status", "103", "link", "</x>") })
		}), kind: p},
		{name: "101", http2: answers(func(f *frames, n uint32) error { return f.Status(n, "101", true) }), silent: true, kind: tm, message: late},
		{name: "an interim answer that is the last", http2: answers(func(f *frames, n uint32) error { return f.Status(n, "103", false) }), kind: p, message: notHTTP2},

		// What concerns nobody, without end.
		{name: "a flood of pings", http2: answers(func(f *frames, _ uint32) error {
			return forever(func() error { return f.WritePing(false, [8]byte{}) })
		}), kind: p, message: flooded},
		{name: "a flood of pings, and it reads nothing", http2: &receivertest.HTTP2{Deaf: true, Answer: func(f *frames, _ uint32) error {
			return forever(func() error { return f.WritePing(false, [8]byte{}) })
		}}, kind: p, message: flooded},
		{name: "a flood of pings in the body", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(head(f, n), forever(func() error { return f.WritePing(false, [8]byte{}) }))
		}), status: 200},
		{name: "a flood of answers to no ping", http2: answers(func(f *frames, _ uint32) error {
			return forever(func() error { return f.WritePing(true, [8]byte{}) })
		}), kind: p, message: flooded},
		{name: "a flood of settings", http2: answers(func(f *frames, _ uint32) error {
			return forever(func() error { return f.WriteSettings(wide...) })
		}), kind: p, message: flooded},
		{name: "a flood of settings from the beginning", http2: begins(func(f *frames) error {
			return forever(func() error { return f.WriteSettings() })
		}), kind: p, message: flooded},
		{name: "a flood of settings that quarrel", http2: answers(func(f *frames, _ uint32) error {
			val := uint32(0)
			return forever(func() error {
				val ^= 1 << 16
				return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: val}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: val})
			})
		}), kind: p, message: flooded},
		{name: "a flood of resets of streams that are none", http2: answers(func(f *frames, _ uint32) error {
			return forever(func() error { return f.WriteRSTStream(1<<20+1, http2.ErrCodeCancel) })
		}), kind: p, message: flooded},
		{name: "a flood of window updates", http2: answers(func(f *frames, _ uint32) error {
			return forever(func() error { return f.WriteWindowUpdate(0, 1) })
		}), kind: p},
		{name: "a flood of priorities", http2: answers(func(f *frames, n uint32) error {
			return forever(func() error { return f.WritePriority(n, http2.PriorityParam{Weight: 1}) })
		}), kind: p, message: flooded},
		{name: "a flood of frames that nobody knows", http2: answers(func(f *frames, n uint32) error {
			return forever(func() error { return f.WriteRawFrame(0xee, 0xff, n, kib) })
		}), kind: p, message: flooded},
		{name: "a flood of heads for streams that are none", http2: answers(func(f *frames, _ uint32) error {
			return forever(func() error { return f.Head(1<<20+1, true, ":status", "200", "x", "y") })
		}), kind: p, message: flooded},
		{name: "dripped pings", http2: answers(func(f *frames, _ uint32) error {
			return forever(func() error { return errors.Join(f.WritePing(false, [8]byte{}), f.Pause(20)) })
		}), silent: true, kind: tm, message: late},

		// What breaks the rules.
		{name: "a window beyond its limit", http2: answers(func(f *frames, _ uint32) error {
			return errors.Join(f.WriteWindowUpdate(0, 1<<31-1), f.WriteWindowUpdate(0, 1<<31-1))
		}), kind: p, message: notHTTP2},
		{name: "the request's window beyond its limit", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(f.WriteWindowUpdate(n, 1<<31-1), f.WriteWindowUpdate(n, 1<<31-1))
		}), kind: p, message: notHTTP2},
		{name: "a promise", http2: answers(func(f *frames, n uint32) error {
			return f.WritePushPromise(http2.PushPromiseParam{StreamID: n, PromiseID: 2, BlockFragment: receivertest.Block(":method", "GET", ":path", "/"), EndHeaders: true})
		}), kind: p, message: notHTTP2},
		{name: "data before the head", http2: answers(func(f *frames, n uint32) error { return f.WriteData(n, true, []byte("ok")) }), kind: p, message: notHTTP2},
		{name: "data for a stream that is none", http2: answers(func(f *frames, _ uint32) error { return f.WriteData(1<<20+1, true, []byte("ok")) }), kind: p, message: notHTTP2},
		{name: "settings that may not be", http2: begins(func(f *frames) error {
			return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
		}), kind: p, message: notHTTP2},
		{name: "a frame that is too large", http2: answers(func(f *frames, n uint32) error {
			return f.WriteRawFrame(http2.FrameData, 0, n, make([]byte, 1<<20))
		}), kind: p, message: notHTTP2},
		{name: "a ping of the wrong size", http2: answers(func(f *frames, _ uint32) error { return f.WriteRawFrame(http2.FramePing, 0, 0, kib[:7]) }), kind: p, message: notHTTP2},
		{name: "something else than settings first", http2: begins(func(f *frames) error { return f.WritePing(false, [8]byte{}) }), kind: p, message: notHTTP2},
		{name: "garbage", http2: begins(func(f *frames) error { return f.Say("garbage garbage garbage garbage") }), kind: p, message: notHTTP2},
		{name: "HTTP/1.1 after all", http2: begins(func(f *frames) error { return f.Say(good) }), kind: p, message: notHTTP2},
		{name: "nothing but HTTP/1.1, and an end", http2: begins(func(f *frames) error { return errors.Join(f.Say(good), io.EOF) }), kind: p, message: notHTTP2, ahead: noAnswer},

		// Ends.
		{name: "closed at once", http2: begins(func(*frames) error { return io.EOF }), kind: c},
		{name: "closed when asked", http2: answers(func(*frames, uint32) error { return io.EOF }), kind: c, message: noAnswer},
		{name: "closed in the head", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(f.WriteHeaders(http2.HeadersFrameParam{StreamID: n, BlockFragment: receivertest.Block(":status", "200")}), io.EOF)
		}), kind: c, message: noAnswer},
		{name: "refused", http2: answers(func(f *frames, n uint32) error { return f.WriteRSTStream(n, http2.ErrCodeRefusedStream) }), kind: c, message: wasReset},
		{name: "reset", http2: answers(func(f *frames, n uint32) error { return f.WriteRSTStream(n, http2.ErrCodeInternal) }), kind: c, message: wasReset},
		{name: "reset, as if there were no error", http2: answers(func(f *frames, n uint32) error { return f.WriteRSTStream(n, http2.ErrCodeNo) }), kind: c, message: wasReset},
		{name: "it wants HTTP/1.1", http2: answers(func(f *frames, n uint32) error { return f.WriteRSTStream(n, http2.ErrCodeHTTP11Required) }), kind: c, message: wasReset},
		{name: "going away at once", http2: begins(func(f *frames) error {
			return errors.Join(f.WriteSettings(), f.WriteGoAway(0, http2.ErrCodeNo, nil))
		}), kind: c, message: noAnswer, ahead: noRoom},
		{name: "going away without us", http2: answers(func(f *frames, _ uint32) error { return f.WriteGoAway(0, http2.ErrCodeNo, nil) }), kind: c},
		{name: "going away in anger, with much to say", http2: answers(func(f *frames, _ uint32) error {
			return errors.Join(f.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, kib), io.EOF)
		}), kind: c},
		{name: "going away, and staying", http2: answers(func(f *frames, _ uint32) error {
			return errors.Join(f.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil), hold(f))
		}), silent: true, kind: tm, message: late},
		{name: "a flood of going away", http2: answers(func(f *frames, _ uint32) error {
			return forever(func() error { return f.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil) })
		}), kind: p, message: flooded},
		{name: "going away with the answer", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(f.WriteGoAway(n, http2.ErrCodeNo, nil), f.Status(n, "204", false))
		}), status: 204},

		// One delivery's answer is not the next one's.
		{name: "a good answer for the next one as well", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(f.Status(n, "500", false), f.Status(n+2, "200", false), f.WritePing(false, [8]byte{}))
		}), heard: 1, kind: s, status: 500, message: "answered 500"},
		{name: "a second answer", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(f.Status(n, "500", false), f.Status(n, "200", false))
		}), kind: s, status: 500, message: "answered 500"},
		{name: "an answer to the one before", http2: answers(func(f *frames, n uint32) error {
			if n > 1 {
				return errors.Join(f.Status(n-2, "200", false), f.Status(n, "500", false))
			}
			return f.Status(n, "500", false)
		}), kind: s, status: 500, message: "answered 500"},
		{name: "a flood behind the answer", http2: answers(func(f *frames, n uint32) error {
			return errors.Join(f.Status(n, "500", false), forever(func() error { return f.WritePing(false, [8]byte{}) }))
		}), ended: true, kind: s, status: 500, message: "answered 500"},
	}
}

// inParts sends the rest of a head in frames that are small enough.
func inParts(f *receivertest.Frames, stream uint32, block []byte) error {
	for len(block) > 0 {
		n := min(len(block), 16<<10)
		if err := f.WriteContinuation(stream, n == len(block), block[:n]); err != nil {
			return err
		}
		block = block[n:]
	}
	return nil
}
