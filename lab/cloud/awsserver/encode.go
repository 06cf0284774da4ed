package awsserver

import (
	"bytes"
	"encoding/xml"
	"maps"
	"strconv"
	"time"
)

const (
	typeJSON10 = "application/x-amz-json-1.0"
	typeJSON11 = "application/x-amz-json-1.1"
	typeJSON   = "application/json"
	typeXML    = "text/xml;charset=UTF-8"
)

// Epoch is a time the JSON protocols carry as seconds since 1970 with a fraction.
type Epoch struct{ time.Time }

// At returns t as an Epoch, nil for the zero time, so that omitempty leaves it out.
func At(t time.Time) *Epoch {
	if t.IsZero() {
		return nil
	}
	return &Epoch{t}
}

// MarshalJSON writes seconds with millisecond precision.
func (e Epoch) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(e.UnixMilli())/1000, 'f', 3, 64), nil
}

// encode writes an operation's answer in the protocol of the exchange.
func encode(x *exchange, out any) (body []byte, contentType string, err error) {
	switch x.protocol {
	case JSON10, JSON11, RESTJSON:
		contentType = map[Protocol]string{JSON10: typeJSON10, JSON11: typeJSON11, RESTJSON: typeJSON}[x.protocol]
		if out == nil {
			return []byte("{}"), contentType, nil
		}
		body, err = marshalJSON(out)
		return body, contentType, err
	case Query:
		if x.json {
			body, err = marshalJSON(map[string]any{x.op + "Response": map[string]any{
				x.op + "Result": out, "ResponseMetadata": map[string]string{"RequestId": x.id}}})
			return body, typeJSON, err
		}
		body, err = encodeQuery(x, out)
		return body, typeXML, err
	case EC2Query:
		body, err = encodeEC2(x, out)
		return body, typeXML, err
	}
	return nil, "", nil
}

func encodeQuery(x *exchange, out any) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("<" + x.op + "Response xmlns=\"" + x.service.Namespace + "\">")
	if out != nil {
		if err := xml.NewEncoder(&b).EncodeElement(out, xml.StartElement{Name: xml.Name{Local: x.op + "Result"}}); err != nil {
			return nil, err
		}
	}
	b.WriteString("<ResponseMetadata><RequestId>" + x.id + "</RequestId></ResponseMetadata></" + x.op + "Response>")
	return b.Bytes(), nil
}

// encodeEC2 writes the members directly under the response element, after the request id.
func encodeEC2(x *exchange, out any) ([]byte, error) {
	var inner bytes.Buffer
	if out != nil {
		if err := xml.NewEncoder(&inner).EncodeElement(out, xml.StartElement{Name: xml.Name{Local: "x"}}); err != nil {
			return nil, err
		}
	}
	var b bytes.Buffer
	b.WriteString("<" + x.op + "Response xmlns=\"" + x.service.Namespace + "\"><requestId>" + x.id + "</requestId>")
	b.Write(bytes.TrimSuffix(bytes.TrimPrefix(inner.Bytes(), []byte("<x>")), []byte("</x>")))
	b.WriteString("</" + x.op + "Response>")
	return b.Bytes(), nil
}

type xmlError struct {
	Type    string `xml:"Type,omitempty" json:"Type,omitempty"`
	Code    string `xml:"Code" json:"Code"`
	Message string `xml:"Message" json:"Message"`
}

// encodeError writes a failure in the protocol of the exchange. It cannot fail: all its parts are plain strings.
func encodeError(x *exchange, e *Error, code string, status int) (body []byte, contentType string) {
	kind := "Sender"
	if status >= 500 {
		kind = "Receiver"
	}
	xe := xmlError{Type: kind, Code: code, Message: e.Message}
	switch {
	case x.protocol == Query && x.json:
		body, _ = marshalJSON(map[string]any{"Error": xe, "RequestId": x.id})
		return body, typeJSON
	case x.protocol == Query:
		body, _ = xml.Marshal(struct {
			XMLName   xml.Name `xml:"ErrorResponse"`
			NS        string   `xml:"xmlns,attr,omitempty"`
			Error     xmlError `xml:"Error"`
			RequestID string   `xml:"RequestId"`
		}{NS: x.service.Namespace, Error: xe, RequestID: x.id})
		return body, typeXML
	case x.protocol == EC2Query:
		xe.Type = ""
		body, _ = xml.Marshal(struct {
			XMLName   xml.Name `xml:"Response"`
			Error     xmlError `xml:"Errors>Error"`
			RequestID string   `xml:"RequestID"`
		}{Error: xe, RequestID: x.id})
		return body, typeXML
	}
	doc := map[string]any{"message": e.Message}
	maps.Copy(doc, e.Fields)
	if x.protocol != RESTJSON {
		doc["__type"] = code
	}
	body, _ = marshalJSON(doc)
	contentType = typeJSON11
	if x.protocol == RESTJSON {
		contentType = typeJSON
	}
	return body, contentType
}
