{{/* Deployment and disruption budget of one component; of: root, component, values, scaled (whether
     somebody else decides the number of replicas). */}}
{{- define "delta-sink.worker" -}}
{{- $name := printf "%s-%s" (include "delta-sink.fullname" .root) .component -}}
{{- $port := include "delta-sink.port" .root -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "delta-sink.labels" . | nindent 4 }}
spec:
  {{- if not .scaled }}
  replicas: {{ include "delta-sink.replicas" .values }}
  {{- end }}
  revisionHistoryLimit: 3
  # A new member stands by until the old one gives its partitions back.
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  selector:
    matchLabels:
      {{- include "delta-sink.selector" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "delta-sink.labels" . | nindent 8 }}
      annotations:
        checksum/config: {{ include "delta-sink.checksum" .root }}
        {{- with .root.Values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      {{- include "delta-sink.podBase" . | nindent 6 }}
      terminationGracePeriodSeconds: {{ .values.terminationGracePeriodSeconds }}
      {{- range $key := list "topologySpreadConstraints" "nodeSelector" "tolerations" "affinity" }}
      {{- with get $.values $key }}
      {{ $key }}:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- end }}
      containers:
        - {{- include "delta-sink.container" (dict "root" .root "name" .component "args" (list "run" .component "--set" (printf "http.port=%s" $port)) "resources" .values.resources) | nindent 10 }}
          ports:
            - name: http
              containerPort: {{ $port }}
          startupProbe:
            httpGet: {path: /livez, port: http}
            periodSeconds: 2
            failureThreshold: 30
          livenessProbe:
            httpGet: {path: /livez, port: http}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 3
          readinessProbe:
            httpGet: {path: /readyz, port: http}
            periodSeconds: 5
            timeoutSeconds: 5
          lifecycle:
            preStop:
              exec: {command: [sleep, "2"]}
{{- if .values.podDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "delta-sink.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ .values.podDisruptionBudget.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "delta-sink.selector" . | nindent 6 }}
{{- end }}
{{- end -}}

{{/* The service account of one component, if one is made; of: root, component, values. */}}
{{- define "delta-sink.account" -}}
{{- if .values.serviceAccount.create -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "delta-sink.serviceAccount" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "delta-sink.labels" . | nindent 4 }}
  {{- with .values.serviceAccount.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}
{{- end -}}
