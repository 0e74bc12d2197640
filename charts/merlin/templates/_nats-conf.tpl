{{/*
The configuration of nats-server. Two accounts, because nats-server checks where a user publishes and not where a user asks
an answer to be sent: MERLIN has the operator and the streams, which lie under that name on the volume, AGENTS the agents.
What an agent may ask for crosses over as a service, one import each. The server then sends the answer to a subject that it
draws itself, and from there to the agent's reply subject within AGENTS, where nobody listens but agents. So an answer
purges nothing and poses as nothing: docs/decisions/0009, and tests/chart/test_hostile_replies.py tries it.

An import cannot make exceptions, so no pattern here may match what agents must not write: that is why verdicts have one
token more than reports (`merlin_study.subjects`). Permissions say the same again, and bound what an agent may hear.
Passwords come from the environment, since a variable there is the one thing that an unquoted $NAME stands for.
*/}}
{{- define "merlin.nats.conf" -}}
{{- $ns := .Release.Namespace -}}
{{- $root := printf "merlin.v1.%s" $ns -}}
{{- $tasks := printf "MERLIN_TASKS_%s" $ns -}}
{{- $reports := printf "MERLIN_REPORTS_%s" $ns -}}
{{- $control := printf "MERLIN_CONTROL_%s" $ns -}}
{{- /* What agents ask for, once and for many answers, and what they hear. */ -}}
{{- $services := list (printf "%s.heartbeat.*.*" $root) (printf "%s.report.*.*" $root) -}}
{{- $services = concat $services (list (printf "$JS.API.DIRECT.GET.%s" $reports) (printf "$JS.API.DIRECT.GET.%s" $control)) -}}
{{- /* The subject of an acknowledgement has two forms: with domain and account, and without. */ -}}
{{- $services = concat $services (list (printf "$JS.ACK.%s.>" $tasks) (printf "$JS.ACK.*.*.%s.>" $tasks)) -}}
{{- $pull := printf "$JS.API.CONSUMER.MSG.NEXT.%s.*" $tasks -}}
{{- $several := gt (int .Values.nats.replicas) 1 -}}
{{- $heard := list (printf "%s.control.>" $root) (printf "%s.rollcall" $root) -}}
{{- if $several }}
server_name: $MERLIN_SERVER_NAME
{{- else }}
server_name: {{ include "merlin.fullname" . }}-nats-0
{{- end }}
listen: "0.0.0.0:4222"
# Within the pod only: this port knows no passwords.
http: "127.0.0.1:8222"
max_payload: {{ .Values.nats.maxPayload }}

tls {
  cert_file: "/etc/nats/tls/tls.crt"
  key_file: "/etc/nats/tls/tls.key"
  min_version: "1.2"
  # No word in the clear, so nothing that somebody on the way could change before encryption begins.
  handshake_first: true
  timeout: 5
}

{{- if $several }}
# Between the servers: each shows the certificate, which the other one verifies, and knows the password.
cluster {
  name: {{ include "merlin.fullname" . }}
  listen: "0.0.0.0:6222"
  # Clients are not told the pods' addresses, which agents outside cannot reach.
  no_advertise: true
  authorization { user: routes, password: $MERLIN_ROUTES_PASSWORD, timeout: 5 }
  tls {
    cert_file: "/etc/nats/tls/tls.crt"
    key_file: "/etc/nats/tls/tls.key"
    ca_file: "/etc/nats/tls/ca.crt"
    min_version: "1.2"
    verify: true
    timeout: 5
  }
  routes: [
    {{- range $number := until (int .Values.nats.replicas) }}
    $MERLIN_ROUTE_{{ $number }}
    {{- end }}
  ]
}
{{- end }}

jetstream {
  # A server that becomes one of several deletes what it kept alone (tried with 2.15.1), so these lie apart.
  store_dir: {{ ternary "/data/cluster" "/data" $several | quote }}
  # A confirmed write survives a crash of the node, not only of the process.
  sync_interval: always
  max_file_store: {{ .Values.nats.maxFileStore }}
  max_memory_store: 256Mi
}

accounts {
  MERLIN {
    # The account's own limit is what the operator can ask for, so that an alert comes before the store is full. It counts
    # what all servers keep.
    jetstream { max_file: {{ include "merlin.nats.accountStore" . }}, max_memory: {{ mul 256 (int .Values.nats.replicas) }}Mi }
    users: [
      {
        user: operator
        password: $MERLIN_OPERATOR_PASSWORD
        permissions {
          publish {
            allow: [
              "{{ $root }}.>"
              "$JS.API.INFO"
              {{- range list $tasks $reports $control }}
              "$JS.API.STREAM.CREATE.{{ . }}"
              "$JS.API.STREAM.INFO.{{ . }}"
              "$JS.API.STREAM.UPDATE.{{ . }}"
              "$JS.API.STREAM.MSG.GET.{{ . }}"
              "$JS.API.STREAM.PURGE.{{ . }}"
              "$JS.API.DIRECT.GET.{{ . }}"
              "$JS.API.DIRECT.GET.{{ . }}.>"
              {{- end }}
              {{- range list $tasks $reports }}
              "$JS.API.CONSUMER.CREATE.{{ . }}"
              "$JS.API.CONSUMER.CREATE.{{ . }}.>"
              "$JS.API.CONSUMER.DURABLE.CREATE.{{ . }}.*"
              "$JS.API.CONSUMER.INFO.{{ . }}.*"
              "$JS.API.CONSUMER.LIST.{{ . }}"
              "$JS.API.CONSUMER.NAMES.{{ . }}"
              "$JS.API.CONSUMER.DELETE.{{ . }}.*"
              {{- end }}
            ]
          }
          subscribe { allow: ["_INBOX_operator.>", "{{ $root }}.heartbeat.*.*"] }
        }
      }
    ]
    exports: [
      {{- range $services }}
      {service: "{{ . }}", accounts: [AGENTS]}
      {{- end }}
      # A pull has many answers. The server forgets where they go after this time without one: longer than a pull.
      {service: "{{ $pull }}", accounts: [AGENTS], response: stream, response_threshold: "1m"}
      {{- range $heard }}
      {stream: "{{ . }}", accounts: [AGENTS]}
      {{- end }}
    ]
  }
  AGENTS {
    users: [
      {
        user: agents
        password: $MERLIN_AGENTS_PASSWORD
        permissions {
          publish {
            allow: [
              {{- range append $services $pull }}
              "{{ . }}"
              {{- end }}
            ]
          }
          subscribe {
            allow: [
              "_INBOX_agents.>"
              {{- range $heard }}
              "{{ . }}"
              {{- end }}
            ]
          }
        }
      }
    ]
    # What agents hear comes from MERLIN alone: an answer that is sent there within this account goes where nobody may listen.
    mappings: {
      {{- range $heard }}
      "{{ . }}": "dropped.{{ . }}"
      {{- end }}
    }
    imports: [
      {{- range append $services $pull }}
      {service: {account: MERLIN, subject: "{{ . }}"}}
      {{- end }}
      {{- range $heard }}
      {stream: {account: MERLIN, subject: "{{ . }}"}}
      {{- end }}
    ]
  }
}
{{- end -}}
