package proxy

import (
	"encoding/binary"
	"net/netip"

	"github.com/isthmus-mesh/isthmus/internal/mesh"
	"github.com/isthmus-mesh/isthmus/internal/state"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// setService finds the service that an inbound connection was for: the one asked for by name, else the one that the
// client's proxy says its application asked for, provided that the workload is part of it; else the only one that the
// workload is part of. It is a label, no more.
func setService(rec *telemetry.Conn, snap *state.Snapshot, local *mesh.Workload, svc *mesh.Service, host string) {
	if svc == nil {
		for k := range local.Services {
			if host != "" && k.Hostname == host || host == "" && len(local.Services) == 1 {
				svc = snap.Service(k)
				break
			}
		}
	}
	if svc != nil {
		rec.Service, rec.ServiceName = svc.Key, svc.Name
	}
}

// tlvIdentity is the type under which ztunnel passes the client's identity in a PROXY protocol header.
const tlvIdentity = 0xD0

// proxyHeader returns a PROXY protocol version 2 header for a stream.
func proxyHeader(src, dst netip.AddrPort, id mesh.Identity) []byte {
	b := []byte("\r\n\r\n\x00\r\nQUIT\n\x21") // signature, version 2, command PROXY
	var body []byte
	if src.Addr().Is4() && dst.Addr().Is4() {
		b = append(b, 0x11)
		s, d := src.Addr().As4(), dst.Addr().As4()
		body = append(append(body, s[:]...), d[:]...)
	} else {
		b = append(b, 0x21)
		s, d := src.Addr().As16(), as16(dst.Addr())
		body = append(append(body, s[:]...), d[:]...)
	}
	body = binary.BigEndian.AppendUint16(body, src.Port())
	body = binary.BigEndian.AppendUint16(body, dst.Port())
	if uri := id.String(); uri != "" {
		body = append(body, tlvIdentity)
		body = binary.BigEndian.AppendUint16(body, uint16(len(uri)))
		body = append(body, uri...)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

func as16(a netip.Addr) [16]byte {
	if !a.IsValid() {
		return [16]byte{}
	}
	return a.As16()
}
