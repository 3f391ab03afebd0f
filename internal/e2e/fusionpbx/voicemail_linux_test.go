package fusionpbx

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"pbxmesh/fixtures/phone"
)

// mailbox gives an extension of a.test a mailbox.
func (m *mesh) mailbox(extension string) {
	m.Helper()
	m.inst.sql(`INSERT INTO v_voicemails (domain_uuid, voicemail_uuid, voicemail_id, voicemail_password, voicemail_enabled, voicemail_tutorial, voicemail_recording_instructions,
	    voicemail_recording_options, voicemail_file, voicemail_local_after_email)
	  VALUES ('%s', gen_random_uuid(), '%s', '4711', true, false, false, false, 'attach', true)`, domainID(0), extension)
}

// messages counts the messages of a mailbox in the database.
func (m *mesh) messages(mailbox string) int {
	m.Helper()
	n, err := strconv.Atoi(m.inst.sql(`SELECT count(*) FROM v_voicemail_messages JOIN v_voicemails USING (voicemail_uuid) WHERE voicemail_id = '%s'`, mailbox))
	if err != nil {
		m.Fatal(err)
	}
	return n
}

// recorded returns the messages' files of a mailbox that hold five seconds or more.
func (m *mesh) recorded(mailbox string) []string {
	files, _ := filepath.Glob(filepath.Join(m.inst.voicemail, "default", tenants[0], mailbox, "msg_*.wav"))
	return slices.DeleteFunc(files, func(f string) bool {
		info, err := os.Stat(f)
		return err != nil || info.Size() <= 5*16000
	})
}

// leave speaks into a mailbox that a call has reached, hangs up, and waits for the message.
func (m *mesh) leave(c *phone.Call, mailbox string) {
	m.Helper()
	messages, before := m.messages(mailbox), m.recorded(mailbox)
	stop := m.talk(c)
	eventually(m.T, "the mailbox records", func() bool {
		return slices.ContainsFunc(m.recorded(mailbox), func(f string) bool { return !slices.Contains(before, f) })
	})
	stop()
	if err := c.Hangup(m.ctx()); err != nil {
		m.Error(err)
	}
	eventually(m.T, "the message is in the database", func() bool { return m.messages(mailbox) == messages+1 })
}

var sdpAddress = regexp.MustCompile(`(?s)c=IN IP4 (\S+).*m=audio (\d+)`)

// talk sends loud PCMU to the other side of a call until stop.
func (m *mesh) talk(c *phone.Call) (stop func()) {
	m.Helper()
	found := sdpAddress.FindStringSubmatch(string(c.Info().RemoteSDP))
	if found == nil {
		m.Fatalf("no audio in %q", c.Info().RemoteSDP)
	}
	to, err := netip.ParseAddrPort(found[1] + ":" + found[2])
	if err != nil {
		m.Fatal(err)
	}
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		m.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		defer conn.Close()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		packet := make([]byte, 12+160)
		packet[0] = 0x80
		for i := 12; i < len(packet); i++ {
			packet[i] = byte(i%2) << 7 // a square wave, nearly full scale
		}
		for n := uint32(0); ; n++ {
			binary.BigEndian.PutUint16(packet[2:], uint16(n))
			binary.BigEndian.PutUint32(packet[4:], 160*n)
			binary.BigEndian.PutUint32(packet[8:], 4711)
			_, _ = conn.Write(packet)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); wg.Wait() }) }
	m.Cleanup(stop)
	return stop
}

var voiceMessage = regexp.MustCompile(`(?i)Voice-Message:\s*(\d+/\d+)`)

// shown returns what a phone's message lamp shows: the counts of its last NOTIFY.
func shown(p *phone.Phone) string {
	counts := ""
	for _, n := range p.Notifies() {
		if n.Event != phone.EventMessages {
			continue
		}
		if found := voiceMessage.FindSubmatch(n.Msg.Body); found != nil {
			counts = string(found[1])
		} else if strings.Contains(strings.ToLower(string(n.Msg.Body)), "messages-waiting: no") {
			counts = "0/0"
		}
	}
	return counts
}

// Voicemail of one database: the lamp of a user shows what is in it, wherever the phone
// is and on whichever node the message was left.
func voicemail(m *mesh) {
	m.mailbox("1051")
	m.mailbox("1052")
	m.set("1051", "call_timeout = 2")
	owner, second := m.phone("1051", m.b), m.phone("1051", m.a)
	for _, p := range []*phone.Phone{owner, second} {
		p.SetBehaviour(phone.RingForever())
	}
	callers := []*phone.Phone{m.phone("1053", m.a), m.phone("1054", m.b)}
	for i := range 4 {
		caller := callers[i%2]
		out := m.dial(caller, "1051")
		m.rings(owner)
		m.rings(second)
		if _, err := out.WaitAnswered(m.ctx()); err != nil {
			m.Fatalf("no voicemail: %v", err)
		}
		m.leave(out, "1051")
		want := strconv.Itoa(i+1) + "/0"
		for where, p := range map[string]*phone.Phone{m.b.name: owner, m.a.name: second} {
			took := eventually(m.T, "the phone on "+where+" shows "+want+", not "+shown(p), func() bool { return shown(p) == want })
			m.Logf("message left on %s: the phone on %s shows %s after %v", m.nodes()[i%2].name, where, want, took)
		}
	}
	// And it stays so: nothing is added up later.
	steady := time.NewTimer(4 * time.Second)
	<-steady.C
	for where, p := range map[string]*phone.Phone{m.b.name: owner, m.a.name: second} {
		if got := shown(p); got != "4/0" {
			m.Errorf("later the phone on %s shows %q, want 4/0", where, got)
		}
	}
	m.silent(owner, second)
}

// A group's mailbox, whose name is no phone's: the extensions that name it as theirs
// (mwi_account) show its messages on both nodes, wherever one was left.
func groupMailbox(m *mesh) {
	m.mailbox("2001")
	members := map[string]*phone.Phone{}
	for user, at := range map[string]*node{"1155": m.a, "1156": m.b, "1157": m.b} {
		m.set(user, "mwi_account = '2001@a.test'")
		members[user+" on "+at.name] = m.phone(user, at)
	}
	for i, caller := range []*phone.Phone{m.phone("1158", m.a), m.phone("1159", m.b), m.phone("1158", m.a)} {
		out := m.dial(caller, "*992001")
		if _, err := out.WaitAnswered(m.ctx()); err != nil {
			m.Fatal(err)
		}
		m.leave(out, "2001")
		want := strconv.Itoa(i+1) + "/0"
		for where, p := range members {
			took := eventually(m.T, "the phone of "+where+" shows "+want+", not "+shown(p), func() bool { return shown(p) == want })
			m.Logf("the phone of %s shows %s after %v", where, want, took)
		}
	}
}
