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

{{- define "trl-operator.labels" -}}
{{ include "trl-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "trl-operator.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "trl-operator.receiverSecret" -}}
{{ include "trl-operator.fullname" . }}-receiver
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
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, create]
- apiGroups: [""]
  resources: [events]
  verbs: [create, list]
{{- end }}
