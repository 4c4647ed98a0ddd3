{{- define "trl-operator.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "trl-operator.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "trl-operator.fullname" .) }}
{{- end }}

{{- define "trl-operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "trl-operator.receiverSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-receiver
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "trl-operator.labels" -}}
{{ include "trl-operator.selector" . }}
{{ include "trl-operator.commonLabels" . }}
{{- end }}

{{- define "trl-operator.receiverLabels" -}}
{{ include "trl-operator.receiverSelector" . }}
{{ include "trl-operator.commonLabels" . }}
{{- end }}

{{- define "trl-operator.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "trl-operator.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* Name of the receiver's Deployment, account, roles, and of the Secret that it mounts. */}}
{{- define "trl-operator.receiver" -}}
{{ include "trl-operator.fullname" . }}-receiver
{{- end }}

{{- /* What the pods of both Deployments have in common. */}}
{{- define "trl-operator.podMetadata" -}}
{{- with .Values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* podSecurityContext without what is left to the cluster, as JSON; numbers of any size stay as they are. */}}
{{- define "trl-operator.podSecurity" -}}
{{- $said := .Values.podSecurityContext | default (dict "runAsUser" 1000 "runAsGroup" 1000 "fsGroup" 1000) }}
{{- $found := dict }}
{{- range $name := list "runAsUser" "runAsGroup" "fsGroup" }}
{{- $value := index $said $name }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "none")) }}
{{- $_ := set $found $name (int64 $value) }}
{{- end }}
{{- end }}
{{- with $said.seLinuxOptions }}
{{- $_ := set $found "seLinuxOptions" . }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{- define "trl-operator.podSpec" -}}
enableServiceLinks: false
terminationGracePeriodSeconds: 20
securityContext:
  runAsNonRoot: true
  seccompProfile:
    type: RuntimeDefault
  {{- with include "trl-operator.podSecurity" . | fromJson }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "trl-operator.container" -}}
image: {{ include "trl-operator.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
livenessProbe:
  httpGet: {path: /healthz, port: health}
  initialDelaySeconds: 15
  periodSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 5
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {drop: [ALL]}
  readOnlyRootFilesystem: true
{{- end }}

{{- /* trl_contract.resources.GPU, as a text of a CEL expression. */}}
{{- define "trl-operator.gpuPattern" -}}
^(nvidia\\.com/gpu|amd\\.com/gpu|nvidia\\.com/mig-[a-z0-9.]+)$
{{- end }}

{{- define "trl-operator.namespacesEnv" -}}
{{- with .Values.scope.namespaces }}
- name: TRL_OPERATOR_WATCH_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
{{- end }}

{{- define "trl-operator.jobRules" -}}
- apiGroups: [trl-operator.io]
  resources: [dpojobs, grpojobs, rewardjobs, sftjobs]
  verbs: [get, list, watch, delete]
- apiGroups: [trl-operator.io]
  resources: [dpojobs/status, grpojobs/status, rewardjobs/status, sftjobs/status]
  verbs: [patch]
# Needed where ownerReferences with blockOwnerDeletion are guarded (OwnerReferencesPermissionEnforcement).
- apiGroups: [trl-operator.io]
  resources: [dpojobs/finalizers, grpojobs/finalizers, rewardjobs/finalizers, sftjobs/finalizers]
  verbs: [update]
{{- $backends := append (default (list) .Values.otherBackends) (default "pytorchjob" .Values.backend) }}
{{- if has "pytorchjob" $backends }}
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [get, list, watch, create, delete]
{{- end }}
{{- if has "trainjob" $backends }}
- apiGroups: [trainer.kubeflow.org]
  resources: [trainjobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [trainer.kubeflow.org]
  resources: [trainingruntimes]
  verbs: [get, create, delete]
{{- end }}
{{- if (.Values.kueue).enabled }}
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list, watch{{ if .Values.kueue.checkpointAwarePreemption }}, patch{{ end }}]
{{- end }}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create]
- apiGroups: [""]
  resources: [events]
  verbs: [list, watch, create]
{{- end }}

{{- /* The receiver reads who may report, and writes progress. */}}
{{- define "trl-operator.reportRules" -}}
- apiGroups: [trl-operator.io]
  resources: [dpojobs, grpojobs, rewardjobs, sftjobs]
  verbs: [get, list, watch]
- apiGroups: [trl-operator.io]
  resources: [dpojobs/status, grpojobs/status, rewardjobs/status, sftjobs/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end }}
